"""How the processes of a tensor-parallel shard meet, and how the first leads the others."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from typing import NamedTuple, TypeVar

import msgspec
import torch
import torch.distributed as dist

from sps2.common.bus.peer import Peer
from sps2.common.config import Bus
from sps2.common.errors import ServiceError
from sps2.common.messages import Done, Follower, Lead, Stream
from sps2.common.messages import Peer as PlanePeer
from sps2.common.model.collectives import Collectives
from sps2.common.model.share import Share
from sps2.services.tasks import forever

Item = TypeVar("Item")

MEETING_HOST = "127.0.0.1"
MEETING_S = 300.0
"""How long a process waits for the others of its shard to start."""

log = logging.getLogger(__name__)


class Led(NamedTuple):
    """A follower process as its leader reaches it."""

    bus: Peer
    plane: PlanePeer


class Team:
    """The processes of one shard, seen from one of them; `collectives` is None if it is alone.

    The first process leads: the cluster knows only this one, and it forwards requests to the
    others. If one process is lost, the shard is lost and is started again as a whole.
    """

    def __init__(self, share: Share, collectives: Collectives | None, store: dist.Store) -> None:
        self.share = share
        self.collectives = collectives
        self._store = store

    async def close(self) -> None:
        if self.collectives is not None:
            self.collectives.close()

    async def agreed(self, number: int) -> int:
        """The smallest number of all processes; every process must call this in the same order."""
        if self.collectives is None:
            return number
        return await asyncio.to_thread(self.collectives.least, number)

    def present(self, follower: Follower) -> None:
        """Publish the addresses of this process for the leader."""
        self._store.set(f"follower/{self.share.rank}", msgspec.json.encode(follower).decode())

    async def followers(self) -> tuple[Follower, ...]:
        """The addresses of the other processes; waits until all of them have published theirs."""
        keys = [f"follower/{rank}" for rank in range(1, self.share.size)]
        published = [await asyncio.to_thread(self._store.get, key) for key in keys]
        return tuple(msgspec.json.decode(each, type=Follower) for each in published)


async def meet(share: Share, port: int, place: torch.device) -> Team:
    """Meet the other processes of this shard, which are all on this machine.

    Args:
        port: where the first of them listens; on loopback, since torch.distributed has no keys.
        place: the device that this process computes on.
    """
    if share.size == 1:
        return Team(share, None, dist.HashStore())

    def join() -> Team:
        first = not share.rank
        # a store that binds its port itself does so on every address of the machine
        listening = socket.create_server((MEETING_HOST, port)).detach() if first else None
        store = dist.TCPStore(
            MEETING_HOST,
            port,
            share.size,
            is_master=first,
            timeout=timedelta(seconds=MEETING_S),
            wait_for_workers=False,
            master_listen_fd=listening,
        )
        return Team(share, Collectives(share, store, MEETING_HOST, _end, place), store)

    return await asyncio.to_thread(join)


def connect(followers: Sequence[Follower], shard: str, bus: Bus) -> list[Led]:
    """The leader's connections to its followers, which are named `shard`.1, `shard`.2, ..."""
    return [
        Led(Peer(follower.address, bus, f"{shard}.{rank}"), follower.peer)
        for rank, follower in enumerate(followers, 1)
    ]


@asynccontextmanager
async def leading(led: Sequence[Led], stop: asyncio.Event) -> AsyncIterator[None]:
    """Lead while the block runs; this process ends when a follower is lost.

    `stop` is set when a follower is told to end.
    """

    async def watch(follower: Peer) -> None:
        try:
            accepted = False
            async with follower.stream(Lead()) as items:
                async for _ in items:
                    if accepted:
                        stop.set()
                    accepted = True
        except ServiceError as error:
            _end(error)
        _end(ServiceError(f"{follower.name} has left"))

    watches = [asyncio.create_task(watch(each.bus)) for each in led]
    try:
        yield
    finally:
        for each in watches:
            each.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


class Loyalty:
    """A follower's handler of `Lead`: sets `stop` when its leader is gone.

    If `stop` is set before, the leader is told.
    """

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self.is_led = False
        self._left = asyncio.Event()

    async def lead(self, request: Lead) -> AsyncGenerator[Done, None]:
        self.is_led = True
        try:
            yield Done()
            await self._stop.wait()
            yield Done()
            await forever()
        finally:
            self._left.set()
            self._stop.set()

    async def released(self, within_s: float) -> None:
        """Wait until the leader is gone, if there was one, but not longer than `within_s`."""
        if self.is_led:
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._left.wait()


@asynccontextmanager
async def opened(
    followers: Sequence[Peer], request: Stream[Item]
) -> AsyncIterator[list[AsyncIterator[Item]]]:
    """Open the same stream to each follower while the block runs."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(each.stream(request)) for each in followers]


def _end(error: Exception) -> None:
    """End this process at once: a shard that lost a process cannot go on; callers must not wait."""
    log.error("another process of this shard is gone: %s", error)
    os._exit(1)
