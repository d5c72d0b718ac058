"""What the scheduler's core wants to be done."""

from dataclasses import dataclass

from sps2.common.errors import ServiceError
from sps2.services.scheduler.plan import Plan


@dataclass(frozen=True)
class Find:
    """Ask the directory which pages of a prompt are cached."""

    request: str
    hashes: tuple[bytes, ...]


@dataclass(frozen=True)
class Launch:
    """Reserve, prefill, decode as planned. urgency: of the prefill; see `messages.Prefill`."""

    request: str
    epoch: int
    plan: Plan
    urgency: float = 0.0


@dataclass(frozen=True)
class Reject:
    request: str
    error: ServiceError


@dataclass(frozen=True)
class ChangeUrgency:
    """Tell the shards that prefill a request how urgent it is now."""

    request: str
    epoch: int
    plan: Plan
    urgency: float


Action = Find | Launch | Reject | ChangeUrgency
