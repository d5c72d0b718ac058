"""Looks prompts up in the KV directory, and has their pages read from disk while they wait."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from sps2.common.bus.peer import Peer
from sps2.common.errors import PeerLost, ServiceError
from sps2.common.messages import CachedRun, Commit, Held, Hold, Lookup, Placement, Reserve
from sps2.common.spans import Span
from sps2.services.scheduler.actions import Find
from sps2.services.scheduler.cached_prefix import Prefix, hashes_from_disk
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import Event, Found, ReadAhead, ReadingAhead
from sps2.services.scheduler.plan import Work
from sps2.services.tasks import gather_all

log = logging.getLogger(__name__)

FIND_S = 2.0
"""How long the directory may take to look up cached pages."""
READ_S = 120.0
"""How long shards may take to read pages from disk."""
AHEAD = "+disk"
"""Behind the name of a request in that of the lease under which its pages are read."""


class Lookups:
    """Finds the cached pages of queued requests.

    Pages on disk of a request that has to wait are read into memory at once, if that is predicted
    to be faster than to compute them. They are cached there then as all others, idle: whoever needs
    room sooner may have it. One request's pages are read at a time.

    Args:
        directory: the KV directory on the bus.
        core: predicts.
        peers: shards on the bus, by name.
        found: takes what was found.

    Attributes:
        queued: the requests in the queue, by name.
    """

    def __init__(
        self,
        directory: Peer,
        core: Core,
        peers: Mapping[str, Peer],
        handle: Callable[[Event], None],
    ) -> None:
        self.queued: dict[str, Work] = {}
        self._directory = directory
        self._core = core
        self._peers = peers
        self._handle = handle
        self._reading = asyncio.Lock()

    async def find(self, action: Find) -> None:
        """Look a prompt up, and once more when its pages have been read from disk."""
        request, hashes = action.request, action.hashes
        cached = await self._look_up(request, hashes)
        self._handle(Found(request, cached))
        if not any(run.on_disk for run in cached):
            return
        async with self._reading:
            if (work := self.queued.get(request)) is None:
                return
            try:
                await self._read_ahead(work, cached)
            except (ServiceError, TimeoutError) as error:  # its own turn comes
                log.info("request %s: pages are not read ahead: %s", request, error)
        cached = await self._look_up(request, hashes)
        if request in self.queued:
            self._handle(Found(request, cached))

    async def _look_up(self, request: str, hashes: tuple[bytes, ...]) -> tuple[CachedRun, ...]:
        try:
            return (await self._directory.call(Lookup(hashes), FIND_S)).runs
        except ServiceError as error:
            log.warning("request %s goes without the prefix cache: %s", request, error)
            return ()

    async def _read_ahead(self, work: Work, cached: tuple[CachedRun, ...]) -> None:
        """Read the pages that its plan would read, were it planned now."""
        plan = self._core.forecast(work, cached, time.monotonic()).plan
        if plan is None or not plan.prefix.from_disk:
            return
        places = _places(plan.prefix)
        hashes = hashes_from_disk(places, work.hashes, plan.prefix.page_tokens)
        name = f"{work.request}{AHEAD}"
        reserve = Reserve(name, 0, places, from_disk=hashes)
        is_cached = False
        async with asyncio.timeout(READ_S), self._directory.stream(reserve) as rooms:
            await anext(rooms)
            self._handle(ReadingAhead(work.request, places, hashes))
            try:
                async with AsyncExitStack() as held:
                    holds = [self._held(name, place, work.hashes) for place in places]
                    await gather_all(*(held.enter_async_context(each) for each in holds))
                    await self._directory.call(Commit(name, 0, hashes), FIND_S)
                    is_cached = True
            finally:
                self._handle(ReadAhead(work.request, is_cached))

    @asynccontextmanager
    async def _held(
        self, name: str, place: Placement, hashes: Sequence[bytes]
    ) -> AsyncIterator[None]:
        """The pages of a placement, which are in memory as long as the block runs."""
        hold = Hold(name, 0, place.span, 0, tuple(hashes), place.shared, from_disk=place.from_disk)
        if place.shard not in self._peers:
            raise PeerLost(place.shard)
        async with self._peers[place.shard].stream(hold) as items:
            async for item in items:
                if isinstance(item, Held):
                    break
            yield


def _places(prefix: Prefix) -> tuple[Placement, ...]:
    """Placements of the pages on disk alone."""
    nothing = Span(prefix.tokens, prefix.tokens)
    return tuple(
        Placement(shard, nothing, 0, spans, spans) for shard, spans in prefix.from_disk.items()
    )
