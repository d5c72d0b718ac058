"""Which shard holds which KV: leases, free and cached pages, leaks. No clock, no I/O."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from sps2.common.errors import Invalid, PeerLost, Refused
from sps2.common.messages import CachedRun, Holding, Lease, Leases, OnDisk, Placement, Room
from sps2.services.kvdir.page_cache import PageCache

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
    """Holdings without a lease at the latest report: leaks, if the next report has them too."""
    leaked: set[Key] = field(default_factory=set)
    evicted: list[bytes] = field(default_factory=list)
    """Cached pages whose eviction the shard has not been notified of yet."""
    stray: int = 0
    """Pages held for requests without a lease."""


Hashes = Mapping[str, tuple[bytes, ...]]
"""Page hashes by shard."""
NONE: Hashes = {}
NOWHERE = OnDisk()


@dataclass
class Grant:
    """One lease: `own` are its own pages that are cached, `shared` are cached pages of others.

    from_disk: hashes of its own pages that come from disk; `own` has them too once they are cached.
    """

    placements: tuple[Placement, ...]
    shared: Hashes
    own: dict[str, tuple[bytes, ...]]
    from_disk: Hashes = field(default_factory=dict)
    committed: bool = False

    def pages(self, place: Placement) -> int:
        """Pages of this placement that are not cached."""
        pages = place.pages + len(self.from_disk.get(place.shard, ()))
        return pages - len(self.own.get(place.shard, ()))


class Directory:
    """The one authority for placement, free pages and the prefix cache.

    A shard's free pages are its pool less the leased pages, less cached pages that leases use,
    less the pages that it holds for requests without a lease (a directory that lost its memory
    learns of those from the shards). Idle cached pages are free: they are evicted when needed.
    """

    def __init__(self) -> None:
        self.cache = PageCache()
        self._pools: dict[str, Pool] = {}
        self._grants: dict[Key, Grant] = {}
        self._leased: Counter[str] = Counter()
        """Leased pages that are not cached, by shard."""

    def announce(
        self,
        shard: str,
        peer: str,
        pages: int,
        page_tokens: int,
        holdings: Sequence[Holding],
        cached: Sequence[bytes] = (),
        on_disk: OnDisk = NOWHERE,
    ) -> list[bytes]:
        """Add a shard, or one that restarted: `peer` is different after every start.

        Returns:
            Hashes that the shard has to evict. The list grows; the caller passes them on to the
            shard and clears it.
        """
        pool = self._pools[shard] = Pool(peer, pages, page_tokens, {})
        self._take_inventory(pool, holdings)
        self.cache.lose(shard)
        self.cache.disk.report(shard, on_disk)
        self._adopt(shard, cached)
        return pool.evicted

    def report(
        self,
        shard: str,
        peer: str,
        holdings: Sequence[Holding],
        cached: Sequence[bytes] = (),
        missing: Sequence[bytes] = (),
        on_disk: OnDisk = NOWHERE,
    ) -> None:
        """Record a shard's inventory; what has no lease in two reports in a row has leaked.

        Raises:
            Invalid: the shard has not announced itself since it started.
        """
        pool = self._pools.get(shard)
        if pool is None or pool.peer != peer:
            raise Invalid(f"{peer} has not announced itself")
        self._take_inventory(pool, holdings)
        unleased = {key for key in pool.holdings if key not in self._grants}
        pool.leaked = unleased & pool.unleased
        pool.unleased = unleased
        self.cache.forget(shard, missing)
        self.cache.disk.report(shard, on_disk)
        self._adopt(shard, cached)

    def withdraw(self, shard: str, peer: str) -> None:
        """Remove a shard that ended; leases on it stay until their holders end them."""
        pool = self._pools.get(shard)
        if pool is not None and pool.peer == peer:
            del self._pools[shard]
            self.cache.lose(shard)

    def find(self, hashes: Sequence[bytes]) -> tuple[CachedRun, ...]:
        """The cached pages of a prompt; see `PageCache.find`."""
        return self.cache.find(hashes)

    def reserve(
        self,
        request: str,
        epoch: int,
        placements: tuple[Placement, ...],
        shared: Hashes = NONE,
        restore: bool = False,
        own: Hashes = NONE,
        from_disk: Hashes = NONE,
    ) -> None:
        """Grant a lease on the pages that `placements` name, and on cached ones.

        Args:
            shared: cached pages, which stay cached as long as the lease.
            restore: grant again a lease that was granted before the directory lost its memory, or
                the link to its holder; it replaces the one that is here, if there is one.
            own: cached pages of its own, of a lease that is restored.
            from_disk: pages that its shards read from disk, each into a free page.

        Raises:
            Refused: a shard is absent, has too few free pages, or lacks a page to share.
            Invalid: the request holds a lease of this epoch already, or names no pages.
        """
        if (request, epoch) in self._grants and not restore:
            raise Invalid(f"request {request} holds a lease in epoch {epoch} already")
        if not placements or any(place.pages < (not place.shared) for place in placements):
            raise Invalid(f"a lease for {request} must name pages on at least one shard")
        here = (self.cache.on(*each) for each in shared.items())
        there = (self.cache.disk.on(*each) for each in from_disk.items())
        if not restore and not (all(here) and all(there)):
            raise Refused("the cached prefix is not where it was")
        self._drop(request, epoch)
        grant = Grant(placements, shared, dict(own), from_disk, restore)
        self._grants[request, epoch] = grant
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

    def extend(self, request: str, epoch: int, shard: str, pages: int) -> None:
        """Add pages to a lease, on a shard where it has some.

        Raises:
            Refused: the shard has too few free pages.
            PeerLost: the shard has not announced itself.
            Invalid: the request has no lease in this epoch, or none on this shard.
        """
        grant = self._grants.get((request, epoch))
        if grant is None or all(place.shard != shard for place in grant.placements):
            raise Invalid(f"request {request} has no lease on {shard} in epoch {epoch}")
        if shard not in self._pools:
            raise PeerLost(shard, f"{shard} has not announced itself")
        if self._free(shard) < pages:
            raise Refused(f"{shard} has no room for {pages} more pages")
        self._leased[shard] += pages
        last = [place for place in grant.placements if place.shard == shard][-1]
        grown = replace(last, pages=last.pages + pages)
        grant.placements = tuple(grown if place is last else place for place in grant.placements)
        self._make_room(shard)

    def commit(
        self, request: str, epoch: int, hashes: Hashes = NONE
    ) -> dict[str, tuple[bytes, ...]]:
        """Cache full pages of a lease whose KV is complete.

        Returns:
            The hashes that are new, by shard.

        Raises:
            Invalid: the request has no lease in this epoch.
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
        """End a lease; unknown leases are ignored. Its shards give the pages back by themselves."""
        self._drop(request, epoch)
        for pool in self._pools.values():
            pool.stray -= pool.holdings.pop((request, epoch), 0)

    def drop(self, shard: str) -> int:
        """Evict all idle pages of a shard, and forget those on its disk; returns how many."""
        evicted = self.cache.evict(shard, self.cache.pages(shard))
        self._pools[shard].evicted += evicted
        self.cache.disk.forget(shard)
        return len(evicted)

    def _take_inventory(self, pool: Pool, holdings: Sequence[Holding]) -> None:
        pool.holdings = {(held.request, held.epoch): held.pages for held in holdings}
        pool.stray = sum(pages for key, pages in pool.holdings.items() if key not in self._grants)

    def _count(self, request: str, epoch: int, grant: Grant, sign: int) -> None:
        """Count a lease that begins (`sign` 1) or ends (-1)."""
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
        """Cache pages, evict those that another shard has; returns the new ones."""
        new, elsewhere = self.cache.add(shard, hashes)
        self._pools[shard].evicted += elsewhere
        return new

    def _adopt(self, shard: str, hashes: Sequence[bytes]) -> None:
        """Cache pages that the shard cached by itself."""
        self._take_in(shard, hashes)
        self._make_room(shard)

    def _make_room(self, shard: str) -> None:
        """Evict idle pages until all pages fit the pool."""
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
        """All leases and page counts, for people and tests."""
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
            self.cache.disk.pages(),
        )
