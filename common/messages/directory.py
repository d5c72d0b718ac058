"""The KV directory: pages, leases and cached prefixes."""

from sps2.common.messages.base import Done, Request, Stream, Struct
from sps2.common.spans import Span


class Placement(Struct, frozen=True):
    """`span` of a request's tokens lies on shard `shard`, which reserved `pages` pages for it."""

    shard: str
    span: Span
    pages: int
    shared: tuple[Span, ...] = ()
    """Of the tokens before, those whose cached pages are there; whole pages."""


class Holding(Struct, frozen=True):
    """What one shard says it holds for one request."""

    request: str
    epoch: int
    span: Span
    pages: int


class Announce(Stream["Evicted"], frozen=True):
    """Shard to directory: pool size and what it holds; its pages count while this is open.

    Items: cached pages to forget. The first, of none, says: accepted.
    """

    shard: str
    peer: str
    pages: int
    page_tokens: int
    holdings: tuple[Holding, ...] = ()
    cached: tuple[bytes, ...] = ()
    """Names of all cached pages."""


class Evicted(Struct, frozen=True):
    hashes: tuple[bytes, ...]


class Report(Request[Done], frozen=True):
    """Shard to directory, every heartbeat: what it holds now."""

    shard: str
    peer: str
    holdings: tuple[Holding, ...]
    cached: tuple[bytes, ...] = ()
    """Names of pages whose makers have ended since the last report."""
    missing: tuple[bytes, ...] = ()
    """Names that requests wanted to share since then, and that are not cached there."""


class Room(Struct, frozen=True):
    """Pages per shard that keeps KV: free now, and in all."""

    free: dict[str, int]
    total: dict[str, int]


class Watch(Stream[Room], frozen=True):
    """Scheduler to directory: the room, at once and after every change."""


class Lookup(Request["Cached"], frozen=True):
    """Scheduler to directory: which of a prompt's pages are cached."""

    hashes: tuple[bytes, ...]


class CachedRun(Struct, frozen=True):
    """`pages` pages, one after the other, are cached on `shard`; `idle` of them nobody uses now."""

    shard: str
    pages: int
    idle: int


class Cached(Struct, frozen=True):
    """From the prompt's first page on."""

    runs: tuple[CachedRun, ...]


class Reserve(Stream[Room], frozen=True):
    """Scheduler to directory: a lease on pages, held while this is open.

    One item once granted. Refused if a shard has too few free pages, or no longer has those that
    are to be shared. `restore` re-takes a lease that a lost directory had granted.
    """

    request: str
    epoch: int
    placements: tuple[Placement, ...]
    shared: dict[str, tuple[bytes, ...]] = {}
    """By shard, the cached pages that the request uses."""
    restore: bool = False
    own: dict[str, tuple[bytes, ...]] = {}
    """To restore: what `Committed` named."""


class Commit(Request["Committed"], frozen=True):
    """Scheduler to directory: the request's KV is complete in its places and may be decoded.

    `hashes`, by shard, are its own pages that are full now: they are cached, and used by its lease.
    """

    request: str
    epoch: int
    hashes: dict[str, tuple[bytes, ...]] = {}


class Committed(Struct, frozen=True):
    hashes: dict[str, tuple[bytes, ...]]
    """By shard, those of the hashes that nobody else had."""


class Lease(Struct, frozen=True):
    """One request's places as the directory knows them."""

    request: str
    epoch: int
    committed: bool
    placements: tuple[Placement, ...]


class Leases(Struct, frozen=True):
    leases: tuple[Lease, ...]
    free: dict[str, int]
    total: dict[str, int]
    leaked_pages: int
    """Pages that shards hold for requests nobody leases; 0 unless something was lost."""
    cached_pages: int = 0
    """Of the prefix cache; those that no lease uses count as free too."""
    evicted_pages: int = 0
    """Since the directory started."""


class ListLeases(Request[Leases], frozen=True):
    """Anyone to directory: every lease, and the room left."""
