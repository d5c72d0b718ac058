"""What happens to the scheduler's core."""

import msgspec

from sps2.common.messages import CachedRun, Measures, Placement, Role, Room, Shard
from sps2.services.scheduler.plan import Work


class _Event(msgspec.Struct, frozen=True, tag=True):
    """Base class: a tagged structure, for the event log."""


class Joined(_Event, frozen=True):
    """A shard is there; `draining`: it gets no new work, as it was told before."""

    shard: Shard
    draining: bool = False


class Lost(_Event, frozen=True):
    """A shard ended; `peer` is the data-plane name that it had since its last start."""

    shard: str
    peer: str


class Parted(_Event, frozen=True):
    """Two processes, by their data-plane names, have lost the link between them."""

    one: str
    other: str


class Assigned(_Event, frozen=True):
    """A mixed shard got a duty."""

    shard: str
    duty: Role


class Retired(_Event, frozen=True):
    """A shard drains, or is about to leave: it gets no new work."""

    shard: str


class Employed(_Event, frozen=True):
    """A shard that drained gets work again."""

    shard: str


class HandedOver(_Event, frozen=True):
    """What a shard does is to go on on others."""

    shard: str


class Measured(_Event, frozen=True):
    """A shard has measured itself, and its way to a partner; None: it could not."""

    shard: str
    partner: str
    measures: Measures | None


class RoomSeen(_Event, frozen=True):
    room: Room


class Submitted(_Event, frozen=True):
    work: Work


class Found(_Event, frozen=True):
    """The directory's answer to `Find`."""

    request: str
    cached: tuple[CachedRun, ...]


class ReadingAhead(_Event, frozen=True):
    """Pages on disk of a request in the queue are read; their shards have a lease for that."""

    request: str
    placements: tuple[Placement, ...]
    hashes: dict[str, tuple[bytes, ...]]
    """Of the pages, by shard."""


class ReadAhead(_Event, frozen=True):
    """The reading is over, and so is its lease; `cached` says whether the pages are cached now."""

    request: str
    cached: bool


class Granted(_Event, frozen=True):
    """The directory leased the pages of a launched request; `room` is what is left."""

    request: str
    room: Room


class Progressed(_Event, frozen=True):
    """A prefill has computed `tokens` of the prompt, cached ones not counted."""

    request: str
    tokens: int


class Moved(msgspec.Struct, frozen=True):
    """Bytes of large frames from one shard to another; see `messages.Received`."""

    source: str
    target: str
    nbytes: int
    seconds: float


class Computed(_Event, frozen=True):
    """The ranks of a request's group have computed a chunk.

    seconds: of arithmetic by rank, in wall-clock time; waiting for other ranks is not in it.
    moved: what they received meanwhile.
    """

    request: str
    seconds: tuple[float, ...]
    moved: tuple[Moved, ...] = ()


class Chunked(_Event, frozen=True):
    """A chunk of a prompt is computed, and its KV is kept: the next one may begin."""

    request: str


class Returned(_Event, frozen=True):
    """A launched request could not go on and is to run again.

    rest_s: seconds before it is planned again, if it got no lease; None if a shard was lost.
    """

    request: str
    rest_s: float | None = None


class Starved(_Event, frozen=True):
    """A growing answer needs pages that its owner does not have."""

    request: str
    pages: int


class Grew(_Event, frozen=True):
    """A growing answer got pages; `room` is what is left."""

    request: str
    room: Room


class Prefilled(_Event, frozen=True):
    request: str


class Decoded(_Event, frozen=True):
    """The answer is complete; it has this many tokens."""

    request: str
    tokens: int


class Shareable(_Event, frozen=True):
    """The full pages of a request's prompt are cached now."""

    request: str


class Ended(_Event, frozen=True):
    """A request is over, however it ended."""

    request: str


class Tick(_Event, frozen=True):
    """Time has passed; see `Core.wakes_at`."""


Event = (
    Joined
    | Lost
    | Parted
    | Assigned
    | Retired
    | Employed
    | HandedOver
    | Measured
    | RoomSeen
    | Submitted
    | Found
    | ReadingAhead
    | ReadAhead
    | Granted
    | Progressed
    | Computed
    | Chunked
    | Returned
    | Starved
    | Grew
    | Prefilled
    | Decoded
    | Shareable
    | Ended
    | Tick
)

CHANGES = (
    Joined
    | Lost
    | Parted
    | Assigned
    | Employed
    | RoomSeen
    | Chunked
    | Returned
    | Prefilled
    | Shareable
    | Ended
)
"""Events after which requests that wait may start."""
STARTS_NONE = ReadingAhead | ReadAhead | Granted | Measured | Progressed | Computed | Decoded | Grew
"""Events after which no request that waits may start."""
SHARD_CHANGES = Joined | Lost | Parted | Assigned | Employed | Chunked | Prefilled
"""Those after which requests that wait for shards may start; so they may when one leaves shards
that prefill."""
TEACHES = Joined | Lost | Assigned | Retired | Employed | Computed | Measured
"""Those from which it may be learned how fast the shards that prefill are, and their links."""
FREES = TEACHES | Ended | Tick
"""Those after which a shard may be due to measure itself, and have nothing else to do."""
