"""A request whose scheduler is lost, and comes back or does not."""

import asyncio
import socket
import struct
import time
from contextlib import aclosing, asynccontextmanager

import pytest

from sps2.common.bus.peer import Peer, Server
from sps2.common.errors import PeerLost
from sps2.common.messages import Describe, Finished, FirstToken, Info, Token
from sps2.services.gateway.generate import LOSSES, Generation, Record
from sps2.services.gateway.shards import Shards

from .test_generate import BUS, JOB, LAST, Cast, all_of, first, placed


class Restarting(Cast):
    """A cast whose scheduler can be ended, and started again at its address."""

    def __init__(self):
        super().__init__()
        self.submitted = []
        self.scheduler = None
        self.address = "tcp://127.0.0.1:0"

    async def script(self, request):
        self.submitted.append(request)
        answered = request.sampling.answered
        yield placed(self.owner)
        yield FirstToken(Token(answered, 10 + answered))
        if len(self.submitted) > 1:
            yield Finished(4, 5, 6, 7)
        await asyncio.Event().wait()

    async def describe(self, request: Describe) -> Info:
        return Info("scheduler", 1, "1", "ready")

    async def begin(self):
        self.scheduler = Server(self, BUS)
        self.address = await self.scheduler.start(self.address)

    async def end(self):
        await self.scheduler.close()


@asynccontextmanager
async def stage(cast, restart_s=30.0):
    owner = Server(cast, BUS)
    cast.owner = await owner.start("tcp://127.0.0.1:0")
    await cast.begin()
    peer, shards = Peer(cast.address, BUS, "scheduler"), Shards(BUS)
    record = Record(time.monotonic())
    try:
        yield Generation(JOB, record, peer, shards, 0.3, restart_s), record
    finally:
        await shards.close()
        await peer.close()
        await owner.close()
        await cast.end()


def prompts(cast):
    return [struct.unpack(f"<{len(each.prompt) // 4}i", each.prompt) for each in cast.submitted]


async def test_an_answer_goes_on_when_the_scheduler_is_back():
    cast, found = Restarting(), []

    async def tokens(request):
        if len(cast.submitted) == 1:
            yield Token(1, 11)
            await asyncio.Event().wait()
        yield LAST

    cast.tokens = tokens
    async with stage(cast) as (generation, record), aclosing(generation.tokens()) as came:
        async for token in came:
            found.append(token.id)
            if token.id == 11:
                await cast.end()
                await cast.begin()
    assert found == [10, 11, 12, 13]
    assert prompts(cast) == [(1, 2, 3), (1, 2, 3, 10, 11)]
    assert [each.sampling.answered for each in cast.submitted] == [0, 2]
    assert len({each.request for each in cast.submitted}) == 2
    assert (record.tokens, record.first.token.id) == (4, 10)


async def test_a_request_without_a_token_is_submitted_as_it_was():
    cast, begun = Restarting(), asyncio.Event()
    usual = cast.script

    async def script(request):
        if begun.is_set():
            async for item in usual(request):
                yield item
        cast.submitted.append(request)
        begun.set()
        await asyncio.Event().wait()
        yield first()

    cast.script = script
    async with stage(cast) as (generation, _):
        answer = asyncio.create_task(all_of(generation))
        await begun.wait()
        await cast.end()
        await cast.begin()
        assert await answer == [10, 11, 12, 13]
    before, now = cast.submitted[:2]
    assert (now.prompt, now.sampling) == (before.prompt, before.sampling)
    assert now.request != before.request


async def test_a_scheduler_that_stays_away_ends_it():
    cast, begun = Restarting(), asyncio.Event()

    async def tokens(request):
        begun.set()
        await asyncio.Event().wait()
        yield LAST

    cast.tokens = tokens
    async with stage(cast, restart_s=0.2) as (generation, _):
        answer = asyncio.create_task(all_of(generation))
        await begun.wait()
        await cast.end()
        with pytest.raises(PeerLost, match="scheduler was lost: it "):
            await answer


async def test_a_request_at_which_the_scheduler_dies_again_and_again_ends():
    """It may be the reason."""
    cast, came = Restarting(), asyncio.Event()

    async def script(request):
        cast.submitted.append(request)
        came.set()
        await asyncio.Event().wait()
        yield first()

    cast.script = script
    async with stage(cast) as (generation, _):
        answer = asyncio.create_task(all_of(generation))
        for _ in range(LOSSES + 1):
            await came.wait()
            came.clear()
            await cast.end()
            await cast.begin()
        with pytest.raises(PeerLost):
            await answer
    assert len(cast.submitted) == LOSSES + 1


async def test_a_scheduler_that_cannot_be_reached_is_waited_for_only_so_long():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        peer = Peer(f"tcp://127.0.0.1:{nobody.getsockname()[1]}", BUS, "scheduler")
        record = Record(time.monotonic())
        with pytest.raises(PeerLost, match="cannot be reached"):
            await all_of(Generation(JOB, record, peer, Shards(BUS), 0.1, 0.1))
        await peer.close()
