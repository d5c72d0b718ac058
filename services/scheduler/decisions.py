"""What a policy may decide. The core carries it out, unless it breaks a rule: see `Core`."""

from dataclasses import dataclass

from sps2.common.errors import ServiceError
from sps2.common.messages import Role
from sps2.services.scheduler.plan import Plan, Wait


@dataclass(frozen=True)
class Start:
    """Run a request as planned.

    urgency: of its prefill. A shard computes first what is most urgent (the largest number), and
        holds back the rest meanwhile; equally urgent prefills share the shard.
    """

    request: str
    plan: Plan
    urgency: float = 0.0


@dataclass(frozen=True)
class NextChunk:
    """Compute the next chunk of a request's prompt as planned.

    The plan is that of `Start` but for the chunk: the group, and what it computes.
    """

    request: str
    plan: Plan
    urgency: float = 0.0


@dataclass(frozen=True)
class LookUp:
    """Ask which pages of the prompt are cached; `Found` follows."""

    request: str


@dataclass(frozen=True)
class Hold:
    """A request, or the next chunk of its prompt, cannot start now, and why.

    One that waits for absent shards too long is refused.

    keeps_room: whether others that start from now on leave it the room that it waits for.
    """

    request: str
    wait: Wait
    keeps_room: bool = False


@dataclass(frozen=True)
class Refuse:
    """A request ends with an error."""

    request: str
    error: ServiceError


@dataclass(frozen=True)
class Urge:
    """A prefill under way has another urgency from now on; see `Start`."""

    request: str
    urgency: float


@dataclass(frozen=True)
class Assign:
    """A mixed shard has another duty from now on; see `Fleet.assign`."""

    shard: str
    duty: Role


Decision = Start | NextChunk | LookUp | Hold | Refuse | Urge | Assign
