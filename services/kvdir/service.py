"""The KV directory on the bus; leases and memberships live as long as their streams."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping

from sps2.common.errors import Invalid
from sps2.common.messages import (
    Announce,
    Cached,
    Commit,
    Committed,
    Done,
    DropCache,
    Dropped,
    Evicted,
    Extend,
    Leases,
    ListLeases,
    Lookup,
    Pinned,
    PinPages,
    Report,
    Reserve,
    Room,
    UnpinAll,
    Watch,
)
from sps2.services.kvdir.directory import Directory, Key


class DirectoryService:
    """Handlers around a `Directory`; every change is sent to all that watch."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._changed = asyncio.Event()
        self._announced: dict[str, Announce] = {}
        """The latest announcement of each shard: when its stream ends, the shard is gone."""
        self._leased: dict[Key, Reserve] = {}
        """The latest request for each lease, which ends with that stream: the loss of an earlier
        one may be noticed late."""
        self._unused_s: dict[str, float] = {}
        """Shards that are to delete pages on disk; see `Evicted.unused_s`."""
        self._pins: defaultdict[str, dict[bytes, bool]] = defaultdict(dict)
        """Pages that shards are to keep on disk, or not any more."""

    async def announce(self, request: Announce) -> AsyncIterator[Evicted]:
        self._announced[request.shard] = request
        evicted = self._directory.announce(
            request.shard,
            request.peer,
            request.pages,
            request.page_tokens,
            request.holdings,
            request.cached,
            request.on_disk,
        )
        self._notify()
        try:
            yield Evicted(())
            while True:
                changed = self._changed
                unused_s = self._unused_s.pop(request.shard, None)
                pins = self._pins.pop(request.shard, {})
                if evicted or pins or unused_s is not None:
                    hashes = tuple(evicted)
                    evicted.clear()
                    yield Evicted(hashes, unused_s, pins)
                await changed.wait()
        finally:
            if self._announced[request.shard] is request:
                self._directory.withdraw(request.shard, request.peer)
                self._notify()

    async def report(self, request: Report) -> Done:
        before = self._directory.room()
        self._directory.report(
            request.shard,
            request.peer,
            request.holdings,
            request.cached,
            request.missing,
            request.on_disk,
        )
        if request.cached or self._directory.room() != before:
            self._notify()
        return Done()

    async def lookup(self, request: Lookup) -> Cached:
        return Cached(self._directory.find(request.hashes))

    async def reserve(self, request: Reserve) -> AsyncIterator[Room]:
        self._directory.reserve(
            request.request,
            request.epoch,
            request.placements,
            request.shared,
            request.restore,
            request.own,
            request.from_disk,
        )
        key = request.request, request.epoch
        self._leased[key] = request
        self._notify()
        try:
            yield self._directory.room()
            await asyncio.Event().wait()
        finally:
            if self._leased.get(key) is request:
                del self._leased[key]
                self._directory.release(*key)
                self._notify()

    async def extend(self, request: Extend) -> Room:
        self._directory.extend(request.request, request.epoch, request.shard, request.pages)
        self._notify()
        return self._directory.room()

    async def commit(self, request: Commit) -> Committed:
        kept = self._directory.commit(request.request, request.epoch, request.hashes)
        self._notify()
        return Committed(kept)

    async def watch(self, request: Watch) -> AsyncIterator[Room]:
        while True:
            changed = self._changed
            yield self._directory.room()
            await changed.wait()

    async def drop_cache(self, request: DropCache) -> Dropped:
        there = sorted(self._directory.room().total)
        if request.shard and request.shard not in there:
            named = ", ".join(there) or "none"
            raise Invalid(f"no shard {request.shard!r} keeps KV; these do: {named}", "shard")
        dropped = {}
        for shard in [request.shard] if request.shard else there:
            dropped[shard] = self._directory.drop(shard) if request.unused_s is None else 0
            self._unused_s[shard] = request.unused_s or 0.0
        self._notify()
        return Dropped(dropped)

    async def pin_pages(self, request: PinPages) -> Pinned:
        cache, hashes = self._directory.cache, request.hashes
        found = cache.pin(hashes) if request.keep else cache.disk.unpin(hashes)
        return self._told(found, request.keep, len(hashes))

    async def unpin_all(self, request: UnpinAll) -> Pinned:
        return self._told(self._directory.cache.disk.unpin(), False)

    def _told(self, pages: Mapping[str, list[bytes]], keep: bool, prompt_pages: int = 0) -> Pinned:
        """Tell shards what they are to keep on disk, or not any more."""
        for shard, hashes in pages.items():
            self._pins[shard] |= dict.fromkeys(hashes, keep)
        self._notify()
        counts = {shard: len(hashes) for shard, hashes in sorted(pages.items())}
        return Pinned(counts, prompt_pages)

    async def list_leases(self, request: ListLeases) -> Leases:
        return self._directory.leases()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
