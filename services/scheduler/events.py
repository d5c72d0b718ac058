"""What happens to the scheduler's core."""

from dataclasses import dataclass

from sps2.common.messages import CachedRun, Room, Shard
from sps2.services.scheduler.plan import Work


@dataclass(frozen=True)
class Joined:
    shard: Shard


@dataclass(frozen=True)
class Lost:
    """A shard ended; `peer` is the data-plane name that it had since its last start."""

    shard: str
    peer: str


@dataclass(frozen=True)
class Parted:
    """Two processes, by their data-plane names, have lost the link between them."""

    one: str
    other: str


@dataclass(frozen=True)
class RoomSeen:
    room: Room


@dataclass(frozen=True)
class Submitted:
    work: Work


@dataclass(frozen=True)
class Found:
    """The directory's answer to `Find`."""

    request: str
    cached: tuple[CachedRun, ...]


@dataclass(frozen=True)
class Granted:
    """The directory leased the pages of a launched request; `room` is what is left."""

    request: str
    room: Room


@dataclass(frozen=True)
class Progressed:
    """A prefill has computed `tokens` of the prompt, cached ones not counted."""

    request: str
    tokens: int


@dataclass(frozen=True)
class Returned:
    """A launched request could not go on and is to run again.

    rest_s: seconds before it is planned again, if it got no lease; None if a shard was lost.
    """

    request: str
    rest_s: float | None = None


@dataclass(frozen=True)
class Prefilled:
    request: str


@dataclass(frozen=True)
class Decoded:
    """The answer is complete; it has so many tokens."""

    request: str
    tokens: int


@dataclass(frozen=True)
class Shareable:
    """The full pages of a request's prompt are cached now."""

    request: str


@dataclass(frozen=True)
class Ended:
    """A request is over, however it ended."""

    request: str


@dataclass(frozen=True)
class Tick:
    """Time has passed; see `Core.wakes_at`."""


Event = (
    Joined
    | Lost
    | Parted
    | RoomSeen
    | Submitted
    | Found
    | Granted
    | Progressed
    | Returned
    | Prefilled
    | Decoded
    | Shareable
    | Ended
    | Tick
)
