"""Who holds which KV: leases, free and cached pages, leaks. Pure: no clock, no I/O."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sps2.common.errors import Invalid, Refused
from sps2.common.messages import CachedRun, Holding, Lease, Leases, Placement, Room
from sps2.services.kvdir.cache import PageCache

Key = tuple[str, int]
"""(request, epoch)"""


@dataclass
class Pool:
    """One shard's pages; `holdings` is what it last reported."""

    peer: str
    pages: int
    page_tokens: int
    holdings: dict[Key, int]
    unleased: set[Key] = field(default_factory=set)
    """Holdings that had no lease at the report before last: candidates for leaks."""
    leaked: set[Key] = field(default_factory=set)
    evicted: list[bytes] = field(default_factory=list)
    """Cached pages that it has yet to be told to forget."""
    stray: int = 0
    """Pages held for requests without a lease."""


Hashes = Mapping[str, tuple[bytes, ...]]
"""Of pages, by shard."""
NONE: Hashes = {}


@dataclass
class Grant:
    """`own` are those of its pages that are cached, `shared` those that others made."""

    placements: tuple[Placement, ...]
    shared: Hashes
    own: dict[str, tuple[bytes, ...]]
    committed: bool = False

    def pages(self, place: Placement) -> int:
        """Pages there that are not cached."""
        return place.pages - len(self.own.get(place.shard, ()))


class Directory:
    """The one authority for placement, free pages and the prefix cache.

    A shard's free pages are its pool less what is leased there, less cached pages that leases use,
    less what it reports to hold for requests without a lease (a directory that lost its memory
    learns of those from the shards). Idle cached pages are free: they are evicted when needed.
    """

    def __init__(self) -> None:
        self.cache = PageCache()
        self._pools: dict[str, Pool] = {}
        self._grants: dict[Key, Grant] = {}
        self._leased: Counter[str] = Counter()
        """By shard, pages of leases that are not cached."""

    def announce(
        self,
        shard: str,
        peer: str,
        pages: int,
        page_tokens: int,
        holdings: Sequence[Holding],
        cached: Sequence[bytes] = (),
    ) -> list[bytes]:
        """A shard joined, or joined again (`peer` tells its lives apart).

        Returns:
            Hashes of pages that it has to forget: whoever takes them out tells it. It grows.
        """
        pool = self._pools[shard] = Pool(peer, pages, page_tokens, {})
        self._take_inventory(pool, holdings)
        self.cache.lose(shard)
        self._adopt(shard, cached)
        return pool.evicted

    def report(
        self,
        shard: str,
        peer: str,
        holdings: Sequence[Holding],
        cached: Sequence[bytes] = (),
        missing: Sequence[bytes] = (),
    ) -> None:
        """Take a shard's inventory; what stays without a lease over two reports has leaked.

        Raises:
            Invalid: this life of the shard has not announced itself.
        """
        pool = self._pools.get(shard)
        if pool is None or pool.peer != peer:
            raise Invalid(f"{peer} has not announced itself")
        self._take_inventory(pool, holdings)
        unleased = {key for key in pool.holdings if key not in self._grants}
        pool.leaked = unleased & pool.unleased
        pool.unleased = unleased
        self.cache.forget(shard, missing)
        self._adopt(shard, cached)

    def withdraw(self, shard: str, peer: str) -> None:
        """That life of the shard is over; leases on it stay until their holders end them."""
        pool = self._pools.get(shard)
        if pool is not None and pool.peer == peer:
            del self._pools[shard]
            self.cache.lose(shard)

    def find(self, hashes: Sequence[bytes]) -> tuple[CachedRun, ...]:
        """Where a prompt's pages are, from the first on, as far as they are cached."""
        return self.cache.find(hashes)

    def reserve(
        self,
        request: str,
        epoch: int,
        placements: tuple[Placement, ...],
        shared: Hashes = NONE,
        restore: bool = False,
        own: Hashes = NONE,
    ) -> None:
        """Grant a lease on the pages that `placements` name, and on cached ones.

        Args:
            shared: cached pages, which stay as long as the lease.
            own: of a lease that is restored, its pages that were cached.

        Raises:
            Refused: a shard is not there, has too few free pages, or not those to be shared.
            Invalid: the request holds a lease of this epoch already, or names no pages.
        """
        if (request, epoch) in self._grants:
            raise Invalid(f"request {request} holds a lease in epoch {epoch} already")
        if not placements or any(place.pages < (not place.shared) for place in placements):
            raise Invalid(f"a lease for {request} must name pages on at least one shard")
        if not restore and not all(self.cache.on(*each) for each in shared.items()):
            raise Refused("the cached prefix is not where it was")
        grant = self._grants[request, epoch] = Grant(placements, shared, dict(own), restore)
        self._count(request, epoch, grant, 1)
        for hashes in (*shared.values(), *own.values()):
            self.cache.refer(hashes)
        if restore:
            return
        for place in placements:
            if place.shard not in self._pools or self._free(place.shard) < 0:
                self._drop(request, epoch)
                raise Refused(f"{place.shard} has no room for {place.pages} pages")
        for place in grant.placements:
            self._make_room(place.shard)

    def commit(
        self, request: str, epoch: int, hashes: Hashes = NONE
    ) -> dict[str, tuple[bytes, ...]]:
        """The KV is complete in its places, and these pages of it are full: they are cached.

        Returns:
            Those of the hashes that are new.

        Raises:
            Invalid: there is no such lease.
        """
        grant = self._grants.get((request, epoch))
        if grant is None:
            raise Invalid(f"request {request} has no lease in epoch {epoch}")
        grant.committed = True
        kept = {}
        for shard, own in hashes.items():
            if shard in self._pools:
                new = self._take_in(shard, own)
                self.cache.refer(new)
                kept[shard] = tuple(new)
                grant.own[shard] = grant.own.get(shard, ()) + kept[shard]
                places = sum(place.shard == shard for place in grant.placements)
                self._leased[shard] -= places * len(new)
        return kept

    def release(self, request: str, epoch: int) -> None:
        """End a lease; unknown ones are ignored. Its shards give the pages back by themselves."""
        self._drop(request, epoch)
        for pool in self._pools.values():
            pool.stray -= pool.holdings.pop((request, epoch), 0)

    def _take_inventory(self, pool: Pool, holdings: Sequence[Holding]) -> None:
        pool.holdings = {(held.request, held.epoch): held.pages for held in holdings}
        pool.stray = sum(pages for key, pages in pool.holdings.items() if key not in self._grants)

    def _count(self, request: str, epoch: int, grant: Grant, sign: int) -> None:
        """A lease begins (1) or ends (-1)."""
        for place in grant.placements:
            self._leased[place.shard] += sign * grant.pages(place)
        for pool in self._pools.values():
            pool.stray -= sign * pool.holdings.get((request, epoch), 0)

    def _drop(self, request: str, epoch: int) -> None:
        if grant := self._grants.pop((request, epoch), None):
            self._count(request, epoch, grant, -1)
            for hashes in (*grant.own.values(), *grant.shared.values()):
                self.cache.release(hashes)

    def _take_in(self, shard: str, hashes: Sequence[bytes]) -> list[bytes]:
        """Cache pages; those that another shard has are of no use there. The new ones."""
        new, elsewhere = self.cache.add(shard, hashes)
        self._pools[shard].evicted += elsewhere
        return new

    def _adopt(self, shard: str, hashes: Sequence[bytes]) -> None:
        """Pages that the shard cached by itself."""
        self._take_in(shard, hashes)
        self._make_room(shard)

    def _make_room(self, shard: str) -> None:
        """Evict until idle pages and all others fit the pool."""
        pool = self._pools[shard]
        idle = self.cache.pages(shard) - self.cache.used(shard)
        pool.evicted += self.cache.evict(shard, max(0, idle - self._free(shard)))

    def room(self) -> Room:
        """Free and total pages per shard; free is negative where leases exceed the pool."""
        free = {shard: self._free(shard) for shard in self._pools}
        return Room(free, {shard: pool.pages for shard, pool in self._pools.items()})

    def _free(self, shard: str) -> int:
        pool = self._pools[shard]
        return pool.pages - self._leased[shard] - self.cache.used(shard) - pool.stray

    def leases(self) -> Leases:
        """Everything known, for people and tests."""
        room = self.room()
        return Leases(
            tuple(
                Lease(request, epoch, grant.committed, grant.placements)
                for (request, epoch), grant in self._grants.items()
            ),
            room.free,
            room.total,
            sum(pool.holdings.get(key, 0) for pool in self._pools.values() for key in pool.leaked),
            sum(self.cache.pages(shard) for shard in self._pools),
            self.cache.evicted_pages,
        )
