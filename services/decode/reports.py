"""What a decode shard reports to the KV directory, and evicts for it."""

import asyncio
from collections.abc import Sequence

from sps2.common.bus.peer import Peer
from sps2.common.messages import Evict, Evicted, Hold, Holding, OnDisk
from sps2.common.spans import page_numbers
from sps2.services.data_loop import DataLoop
from sps2.services.decode.kv.disk import DiskPages
from sps2.services.decode.kv.holding import Holdings
from sps2.services.tasks import gather_all

NOTHING = OnDisk()
NOTHING_EVICTED = Evicted(())


class Reports:
    """The `Inventory` of a decode shard, on the control loop.

    Args:
        holdings: of the leader, on the data loop.
        followers: the other processes of the shard.
        disk: where cached pages are kept too.
        page_tokens: tokens of a page.
    """

    def __init__(
        self,
        holdings: Holdings,
        data: DataLoop,
        followers: Sequence[Peer],
        disk: DiskPages | None,
        page_tokens: int,
    ) -> None:
        self._page_tokens = page_tokens
        self.urgent = asyncio.Event()
        self._holdings = holdings
        self._data = data
        self._followers = followers
        self._disk = disk

    def inventory(self) -> tuple[Holding, ...]:
        """What this shard holds for requests."""
        return self._holdings.inventory()

    def cached(self) -> tuple[bytes, ...]:
        """Hashes of all cached pages."""
        return self._holdings.cached.hashes()

    def news(self) -> tuple[bytes, ...]:
        """Hashes of pages that ended requests cached and that are not `reported` yet."""
        return self._holdings.cached.news()

    def missing(self) -> tuple[bytes, ...]:
        """Hashes of pages that requests were to share and that are not here."""
        return self._holdings.cached.missing()

    def all_on_disk(self) -> OnDisk:
        """All pages on disk."""
        return NOTHING if self._disk is None else self._disk.all()

    def news_of_disk(self) -> OnDisk:
        """Pages that came to the disk, or went from it, and that are not `reported` yet."""
        return NOTHING if self._disk is None else self._disk.news()

    def reported(self, hashes: tuple[bytes, ...], on_disk: OnDisk = NOTHING) -> None:
        """These hashes, and this news of the disk, were reported to the directory."""
        self._data.post(lambda: self._holdings.cached.reported(hashes))
        if self._disk is not None:
            self._disk.reported(on_disk)

    async def evict(self, evicted: Evicted) -> None:
        """Drop pages from the cache and from disk, or pin them, in all processes of this shard."""
        if evicted != NOTHING_EVICTED:
            self._data.post(lambda: self._holdings.evict(evicted))
            evict = Evict(evicted)
            await gather_all(*(follower.call(evict) for follower in self._followers))

    async def doubt(self, request: Hold) -> None:
        """A hold was refused: perhaps a process of this shard lacks pages that it was to share.

        What one of several processes lacks, all have to drop.
        """
        if self._followers and request.shared:
            numbers = page_numbers(request.shared, self._page_tokens)
            hashes = tuple(request.hashes[number] for number in numbers)
            self._data.post(lambda: self._holdings.cached.doubt(hashes))
            await self.evict(Evicted(hashes))
            if self._disk is not None:
                await asyncio.to_thread(self._disk.lose, hashes)
        self.urgent.set()
