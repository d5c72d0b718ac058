"""Messages of the KV directory: pages, leases and cached prefixes."""

from sps2.common.messages.base import Done, Request, Stream, Struct
from sps2.common.spans import Span


class Placement(Struct, frozen=True):
    """The KV of `span` of a request is on shard `shard`, which reserved `pages` pages for it."""

    shard: str
    span: Span
    pages: int
    shared: tuple[Span, ...] = ()
    """Spans of earlier tokens whose cached pages are there; whole pages."""
    from_disk: tuple[Span, ...] = ()
    """Those of `shared` that are on the shard's disk. It reads them into free pages, which `pages`
    does not count."""


class Holding(Struct, frozen=True):
    """What a shard reports to hold for one request."""

    request: str
    epoch: int
    span: Span
    pages: int


class OnDisk(Struct, frozen=True):
    """Which pages a shard has on its disk: all of them, or what changed since the last report."""

    hashes: tuple[bytes, ...] = ()
    erased: tuple[bytes, ...] = ()
    """Hashes of pages that are not there any more, or could not be read."""
    read_page_s: float = 0.0
    """Seconds that reading a page takes, as measured lately."""
    pinned: tuple[bytes, ...] = ()
    """Hashes of all pages that stay there, whether they have come already or not; with
    `most_pinned`."""
    most_pinned: int | None = None
    """How many pages may be pinned; None in a report of changes."""


class Announce(Stream["Evicted"], frozen=True):
    """Shard to directory: its pool and what it holds. Its pages count while this is open.

    Items: cached pages to drop. The first item is empty and means: accepted.
    """

    shard: str
    peer: str
    pages: int
    page_tokens: int
    holdings: tuple[Holding, ...] = ()
    cached: tuple[bytes, ...] = ()
    """Hashes of all cached pages."""
    on_disk: OnDisk = OnDisk()


class Evicted(Struct, frozen=True):
    hashes: tuple[bytes, ...]
    unused_s: float | None = None
    """If given, pages on disk that were not used for this many seconds are to be deleted."""
    pins: dict[bytes, bool] = {}
    """Pages that are to stay on disk from now on, or not any more."""


class Report(Request[Done], frozen=True):
    """Shard to directory, with every heartbeat: report what it holds now."""

    shard: str
    peer: str
    holdings: tuple[Holding, ...]
    cached: tuple[bytes, ...] = ()
    """Hashes of pages whose requests have ended since the last report."""
    missing: tuple[bytes, ...] = ()
    """Hashes that requests wanted to share since the last report, but that are not cached here."""
    on_disk: OnDisk = OnDisk()


class Room(Struct, frozen=True):
    """Pages by shard that keeps KV: free now, and in total."""

    free: dict[str, int]
    total: dict[str, int]


class Extend(Request[Room], frozen=True):
    """Scheduler to directory: add pages to a lease. Refused if the shard has too few."""

    request: str
    epoch: int
    shard: str
    pages: int


class Watch(Stream[Room], frozen=True):
    """Scheduler to directory: send the room now and after every change."""


class Lookup(Request["Cached"], frozen=True):
    """Scheduler to directory: look up which of a prompt's pages are cached."""

    hashes: tuple[bytes, ...]


class CachedRun(Struct, frozen=True):
    """`pages` consecutive pages are cached on `shard`; `idle` of them are not in use."""

    shard: str
    pages: int
    idle: int
    read_page_s: float = 0.0
    """Predicted seconds to read one of them from the shard's disk; 0: they are in memory."""

    @property
    def on_disk(self) -> bool:
        return self.read_page_s > 0

    @property
    def taken(self) -> int:
        """How many free pages they use up once they are shared."""
        return self.pages if self.on_disk else self.idle


class Cached(Struct, frozen=True):
    """The cached runs, in order from the prompt's first page on."""

    runs: tuple[CachedRun, ...]


class Reserve(Stream[Room], frozen=True):
    """Scheduler to directory: a lease on pages, held while this is open.

    One item once granted. Refused if a shard has too few free pages, or no longer has the pages
    to be shared. `restore` re-establishes a lease that a lost directory had granted.
    """

    request: str
    epoch: int
    placements: tuple[Placement, ...]
    shared: dict[str, tuple[bytes, ...]] = {}
    """Hashes of the cached pages that the request shares, by shard."""
    restore: bool = False
    own: dict[str, tuple[bytes, ...]] = {}
    """To restore: the hashes that `Committed` returned."""
    from_disk: dict[str, tuple[bytes, ...]] = {}
    """Hashes of the pages that the shards read from disk. Each takes a free page, and is the
    request's own until `Commit` names it."""


class Commit(Request["Committed"], frozen=True):
    """Scheduler to directory: the request's KV has arrived completely and may be decoded.

    `hashes`, by shard, are of its own pages that are full now: they are cached, and its lease uses
    them.
    """

    request: str
    epoch: int
    hashes: dict[str, tuple[bytes, ...]] = {}


class Committed(Struct, frozen=True):
    hashes: dict[str, tuple[bytes, ...]]
    """The hashes that were not cached before, by shard."""


class Lease(Struct, frozen=True):
    """One request's placements as the directory knows them."""

    request: str
    epoch: int
    committed: bool
    placements: tuple[Placement, ...]


class Leases(Struct, frozen=True):
    leases: tuple[Lease, ...]
    free: dict[str, int]
    total: dict[str, int]
    leaked_pages: int
    """Pages that shards hold for requests without a lease; 0 unless something was lost."""
    cached_pages: int = 0
    """Pages of the prefix cache; those that no lease uses count as free too."""
    evicted_pages: int = 0
    """Pages evicted since the directory started."""
    disk_pages: int = 0
    """Pages on the disks of shards."""


class DropCache(Request["Dropped"], frozen=True):
    """Anyone to gateway, and gateway to directory: drop cached pages that no request uses.

    With `unused_s`, only pages on disk that were not used for this many seconds.
    """

    shard: str = ""
    """Of which shard; empty: of all."""
    unused_s: float | None = None


class Dropped(Struct, frozen=True):
    """How many pages each shard had to drop from memory."""

    pages: dict[str, int]


class PinPages(Request["Pinned"], frozen=True):
    """Scheduler to directory: keep cached pages of a prompt on disk, or do so no longer."""

    hashes: tuple[bytes, ...]
    """Of the prompt's pages, from its first on."""
    keep: bool


class UnpinAll(Request["Pinned"], frozen=True):
    """Anyone to gateway, and gateway to directory: no page is to stay on disk any more."""


class Pinned(Struct, frozen=True):
    """How many pages each shard is to keep on disk, or not any more."""

    pages: dict[str, int]
    prompt_pages: int = 0
    """Full pages of the prompt."""


class ListLeases(Request[Leases], frozen=True):
    """Anyone to directory: list all leases, and the room left."""
