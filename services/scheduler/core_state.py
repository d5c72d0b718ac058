"""All that a core knows at one time, as data."""

import msgspec

from sps2.services.scheduler.fleet import FleetState
from sps2.services.scheduler.request import Request


class CoreState(msgspec.Struct, frozen=True):
    """The state of a core between two events; see `Core.state`.

    factors, tbt_s, answers: what `Costs` has learned.
    """

    requests: tuple[Request, ...]
    queue: tuple[str, ...]
    prefilling: tuple[str, ...]
    turns: dict[str, float]
    fleet: FleetState
    factors: tuple[tuple[float, float], ...]
    tbt_s: float | None
    answers: dict[str, float]
