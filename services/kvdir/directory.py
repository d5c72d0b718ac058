"""Who holds which KV: leases, free pages, leaks. Pure: no clock, no I/O."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sps2.common.errors import Invalid, Refused
from sps2.common.messages import Holding, Lease, Leases, Placement, Room

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


@dataclass
class Grant:
    placements: tuple[Placement, ...]
    committed: bool = False


class Directory:
    """The one authority for placement and free pages.

    A shard's free pages are its pool less what is leased there, less what it reports to hold for
    requests without a lease (a directory that lost its memory learns of those from the shards).
    """

    def __init__(self) -> None:
        self._pools: dict[str, Pool] = {}
        self._grants: dict[Key, Grant] = {}

    def announce(
        self, shard: str, peer: str, pages: int, page_tokens: int, holdings: Sequence[Holding]
    ) -> None:
        """A shard joined, or joined again (`peer` tells its lives apart)."""
        self._pools[shard] = Pool(peer, pages, page_tokens, _by_key(holdings))

    def report(self, shard: str, peer: str, holdings: Sequence[Holding]) -> None:
        """Take a shard's inventory; what stays without a lease over two reports has leaked.

        Raises:
            Invalid: this life of the shard has not announced itself.
        """
        pool = self._pools.get(shard)
        if pool is None or pool.peer != peer:
            raise Invalid(f"{peer} has not announced itself")
        pool.holdings = _by_key(holdings)
        unleased = {key for key in pool.holdings if key not in self._grants}
        pool.leaked = unleased & pool.unleased
        pool.unleased = unleased

    def withdraw(self, shard: str, peer: str) -> None:
        """That life of the shard is over; leases on it stay until their holders end them."""
        pool = self._pools.get(shard)
        if pool is not None and pool.peer == peer:
            del self._pools[shard]

    def reserve(
        self, request: str, epoch: int, placements: tuple[Placement, ...], restore: bool = False
    ) -> None:
        """Grant a lease on the pages that `placements` name.

        Raises:
            Refused: a shard is not there or has too few free pages.
            Invalid: the request holds a lease of this epoch already, or names no pages.
        """
        if (request, epoch) in self._grants:
            raise Invalid(f"request {request} holds a lease in epoch {epoch} already")
        if not placements or any(place.pages < 1 for place in placements):
            raise Invalid(f"a lease for {request} must name pages on at least one shard")
        self._grants[request, epoch] = Grant(placements, committed=restore)
        if restore:
            return
        free = self.room().free
        for place in placements:
            if free.get(place.shard, -1) < 0:
                del self._grants[request, epoch]
                raise Refused(f"{place.shard} has no room for {place.pages} pages")

    def commit(self, request: str, epoch: int) -> None:
        """The KV is complete in its places.

        Raises:
            Invalid: there is no such lease.
        """
        grant = self._grants.get((request, epoch))
        if grant is None:
            raise Invalid(f"request {request} has no lease in epoch {epoch}")
        grant.committed = True

    def release(self, request: str, epoch: int) -> None:
        """End a lease; unknown ones are ignored. Its shards give the pages back by themselves."""
        self._grants.pop((request, epoch), None)
        for pool in self._pools.values():
            pool.holdings.pop((request, epoch), None)

    def room(self) -> Room:
        """Free and total pages per shard; free is negative where leases exceed the pool."""
        free = {shard: pool.pages for shard, pool in self._pools.items()}
        for grant in self._grants.values():
            for place in grant.placements:
                if place.shard in free:
                    free[place.shard] -= place.pages
        for shard, pool in self._pools.items():
            free[shard] -= sum(
                pages for key, pages in pool.holdings.items() if key not in self._grants
            )
        return Room(free, {shard: pool.pages for shard, pool in self._pools.items()})

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
        )


def _by_key(holdings: Sequence[Holding]) -> dict[Key, int]:
    return {(held.request, held.epoch): held.pages for held in holdings}
