"""The KV directory on the bus; leases and memberships live as long as their streams."""

import asyncio
from collections.abc import AsyncIterator

from sps2.common.messages import (
    Announce,
    Cached,
    Commit,
    Committed,
    Done,
    Evicted,
    Extend,
    Leases,
    ListLeases,
    Lookup,
    Report,
    Reserve,
    Room,
    Watch,
)
from sps2.services.kvdir.directory import Directory


class DirectoryService:
    """Handlers around a `Directory`; every change is sent to all that watch."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._changed = asyncio.Event()
        self._announced: dict[str, Announce] = {}
        """The latest announcement of each shard: when its stream ends, the shard is gone."""

    async def announce(self, request: Announce) -> AsyncIterator[Evicted]:
        self._announced[request.shard] = request
        evicted = self._directory.announce(
            request.shard,
            request.peer,
            request.pages,
            request.page_tokens,
            request.holdings,
            request.cached,
        )
        self._notify()
        try:
            yield Evicted(())
            while True:
                changed = self._changed
                if evicted:
                    hashes = tuple(evicted)
                    evicted.clear()
                    yield Evicted(hashes)
                await changed.wait()
        finally:
            if self._announced[request.shard] is request:
                self._directory.withdraw(request.shard, request.peer)
                self._notify()

    async def report(self, request: Report) -> Done:
        before = self._directory.room()
        self._directory.report(
            request.shard, request.peer, request.holdings, request.cached, request.missing
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
        )
        self._notify()
        try:
            yield self._directory.room()
            await asyncio.Event().wait()
        finally:
            self._directory.release(request.request, request.epoch)
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

    async def list_leases(self, request: ListLeases) -> Leases:
        return self._directory.leases()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
