"""The directory on the bus; leases and memberships live as long as their streams."""

import asyncio
from collections.abc import AsyncIterator

from sps2.common.messages import (
    Announce,
    Commit,
    Done,
    Leases,
    ListLeases,
    Report,
    Reserve,
    Room,
    Watch,
)
from sps2.services.kvdir.directory import Directory


class DirectoryService:
    """Handlers around a `Directory`; everyone who watches hears of every change."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._changed = asyncio.Event()

    async def announce(self, request: Announce) -> AsyncIterator[Done]:
        self._directory.announce(
            request.shard, request.peer, request.pages, request.page_tokens, request.holdings
        )
        self._tell()
        try:
            yield Done()
            await asyncio.Event().wait()
        finally:
            self._directory.withdraw(request.shard, request.peer)
            self._tell()

    async def report(self, request: Report) -> Done:
        before = self._directory.room()
        self._directory.report(request.shard, request.peer, request.holdings)
        if self._directory.room() != before:
            self._tell()
        return Done()

    async def reserve(self, request: Reserve) -> AsyncIterator[Room]:
        self._directory.reserve(request.request, request.epoch, request.placements, request.restore)
        self._tell()
        try:
            yield self._directory.room()
            await asyncio.Event().wait()
        finally:
            self._directory.release(request.request, request.epoch)
            self._tell()

    async def commit(self, request: Commit) -> Done:
        self._directory.commit(request.request, request.epoch)
        return Done()

    async def watch(self, request: Watch) -> AsyncIterator[Room]:
        while True:
            changed = self._changed
            yield self._directory.room()
            await changed.wait()

    async def list_leases(self, request: ListLeases) -> Leases:
        return self._directory.leases()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
