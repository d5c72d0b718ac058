"""What the scheduler's core wants to be done."""

import msgspec

from sps2.common.errors import ServiceError
from sps2.services.scheduler.plan import Plan


class _Action(msgspec.Struct, frozen=True, tag=True):
    """Base class: a tagged structure, for the event log."""


class Find(_Action, frozen=True):
    """Ask the directory which pages of a prompt are cached."""

    request: str
    hashes: tuple[bytes, ...]


class Launch(_Action, frozen=True):
    """Reserve, prefill, decode as planned. urgency: of the prefill; see `messages.Prefill`."""

    request: str
    epoch: int
    plan: Plan
    urgency: float = 0.0


class Proceed(_Action, frozen=True):
    """Compute the next chunk of a prompt as planned. urgency: as in `Launch`."""

    request: str
    plan: Plan
    urgency: float = 0.0


class Fail(_Action, frozen=True):
    """End a launched request with an error."""

    request: str
    error: ServiceError


class Reject(_Action, frozen=True):
    request: str
    error: ServiceError


class ChangeUrgency(_Action, frozen=True):
    """Tell the shards that prefill a request how urgent it is now."""

    request: str
    epoch: int
    plan: Plan
    urgency: float


class Preempt(_Action, frozen=True):
    """Stop a request, which resumes later: others need its pages, or its shard is to end."""

    request: str


class Probe(_Action, frozen=True):
    """Have a shard measure its way to a partner, and its own rate if `computes`."""

    shard: str
    partner: str
    computes: bool


Action = Find | Launch | Proceed | Fail | Reject | ChangeUrgency | Preempt | Probe
