"""A request against a scheduler and owners whose messages come early, late, twice or never."""

import asyncio
import time
from contextlib import aclosing, asynccontextmanager

import pytest

from sps2.common.bus.peer import Peer, Server
from sps2.common.config import Bus
from sps2.common.errors import Cancelled, Internal, PeerLost
from sps2.common.messages import (
    Displaced,
    Finished,
    FirstToken,
    Follow,
    Placed,
    Sampling,
    Scheme,
    Submit,
    Token,
)
from sps2.services.gateway.generate import Generation, Job, Record
from sps2.services.gateway.shards import Shards

BUS = Bus(heartbeat_s=0.1)
JOB = Job("a" * 16, (1, 2, 3), Sampling(10, 0))
LAST = Token(3, 13, None, "length")


def placed(address, epoch=1):
    return Placed(epoch, "decode-0", address, 1, (), "exact", Scheme(), {})


def first(finish=None):
    return FirstToken(Token(0, 10, None, finish))


class Cast:
    """A scheduler and an owner that follow a script."""

    def __init__(self):
        self.owner = ""
        self.second = ""
        self.cancelled = False
        self.starts = []

    async def script(self, request):
        yield placed(self.owner)
        yield first()
        yield Finished(4, 5, 6, 7)

    async def tokens(self, request):
        for index in (1, 2):
            yield Token(index, 10 + index)
        yield LAST

    async def submit(self, request: Submit):
        try:
            async for item in self.script(request):
                yield item
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled = True
            raise

    async def follow(self, request: Follow):
        self.starts.append((request.epoch, request.start))
        async for token in self.tokens(request):
            yield token


@asynccontextmanager
async def stage(cast, patience_s=10.0):
    owner, scheduler = Server(cast, BUS), Server(cast, BUS)
    cast.owner = await owner.start("tcp://127.0.0.1:0")
    peer = Peer(await scheduler.start("tcp://127.0.0.1:0"), BUS, "scheduler")
    shards, record = Shards(BUS), Record(time.monotonic())
    try:
        yield Generation(JOB, record, peer, shards, patience_s), record, owner
    finally:
        await shards.close()
        await peer.close()
        await owner.close()
        await scheduler.close()


async def all_of(generation):
    async with aclosing(generation.tokens()) as tokens:
        return [token.id async for token in tokens]


async def test_yields_every_token_in_order():
    async with stage(Cast()) as (generation, record, _):
        assert await all_of(generation) == [10, 11, 12, 13]
    assert record.finished == Finished(4, 5, 6, 7)
    assert record.tokens == 4


async def test_a_first_token_that_is_the_last_needs_no_owner():
    cast = Cast()

    async def script(request):
        yield placed(cast.owner)
        yield first("stop")
        yield Finished(1, 0, 0, 0)

    async def tokens(request):
        await asyncio.Event().wait()
        yield LAST

    cast.script, cast.tokens = script, tokens
    async with stage(cast) as (generation, record, _):
        assert await all_of(generation) == [10]
        assert record.finished == Finished(1, 0, 0, 0)


async def test_tokens_that_come_early_twice_or_in_disorder():
    cast, followed = Cast(), asyncio.Event()

    async def script(request):
        yield placed(cast.owner)
        await followed.wait()
        yield first()
        yield Finished(4, 5, 6, 7)

    async def tokens(request):
        for index in (2, 1, 1, 2):
            yield Token(index, 10 + index)
        followed.set()
        yield LAST

    cast.script, cast.tokens = script, tokens
    async with stage(cast) as (generation, _, _):
        assert await all_of(generation) == [10, 11, 12, 13]


async def test_follows_a_new_plan_from_where_it_is():
    cast, seen = Cast(), asyncio.Event()

    async def script(request):
        yield placed(cast.owner)
        yield first()
        await seen.wait()
        yield placed(cast.owner, epoch=2)
        yield first()
        yield Finished(4, 5, 6, 7)

    async def tokens(request):
        yield Token(1, 11)
        if request.epoch == 1:
            raise Cancelled("released")
        yield Token(2, 12)
        yield LAST

    cast.script, cast.tokens = script, tokens
    found = []
    async with stage(cast) as (generation, record, _), aclosing(generation.tokens()) as came:
        async for token in came:
            found.append(token.id)
            if token.id == 11:
                seen.set()
    assert found == [10, 11, 12, 13]
    assert cast.starts == [(1, 1), (2, 2)]
    assert record.placed.epoch == 2


async def test_the_schedulers_error_counts():
    cast = Cast()

    async def script(request):
        yield placed(cast.owner)
        yield first()
        await asyncio.sleep(0.05)
        raise PeerLost("prefill-3")

    async def tokens(request):
        raise Cancelled("released")
        yield LAST

    cast.script, cast.tokens = script, tokens
    async with stage(cast) as (generation, _, _):
        with pytest.raises(PeerLost, match="prefill-3"):
            await all_of(generation)


async def test_tokens_before_a_failure_come_before_it():
    """The scheduler's word of it overtakes them: they come from another service."""
    cast, told = Cast(), asyncio.Event()

    async def script(request):
        yield placed(cast.owner)
        yield first()
        told.set()
        raise Internal("broken")

    async def tokens(request):
        await told.wait()
        await asyncio.sleep(0.1)
        yield Token(1, 11)
        yield Token(2, 12)
        raise Cancelled("released")

    cast.script, cast.tokens = script, tokens
    async with stage(cast) as (generation, record, _):
        with pytest.raises(Internal, match="broken"):
            await all_of(generation)
    assert record.tokens == 3


async def test_an_owner_that_dies_ends_it_in_time():
    cast, begun = Cast(), asyncio.Event()

    async def script(request):
        yield placed(cast.owner)
        yield first()
        await asyncio.Event().wait()

    async def tokens(request):
        yield Token(1, 11)
        begun.set()
        await asyncio.Event().wait()

    cast.script, cast.tokens = script, tokens
    async with stage(cast, 1.0) as (generation, _, owner):
        answer = asyncio.create_task(all_of(generation))
        await begun.wait()
        await owner.close()
        with pytest.raises(PeerLost):
            await answer
        while not cast.cancelled:
            await asyncio.sleep(0.01)


async def test_totals_that_never_come_are_not_waited_for():
    cast = Cast()

    async def script(request):
        yield placed(cast.owner)
        yield first()
        await asyncio.Event().wait()

    cast.script = script
    async with stage(cast, 1.0) as (generation, record, _):
        assert await all_of(generation) == [10, 11, 12, 13]
        assert record.finished is None


async def test_an_owner_that_tells_too_little():
    cast = Cast()

    async def tokens(request):
        yield Token(1, 11)

    cast.tokens = tokens
    async with stage(cast, 1.0) as (generation, _, _):
        with pytest.raises(PeerLost):
            await all_of(generation)


PATIENCE_S = 0.5


@pytest.mark.parametrize("loss", [Cancelled("request a was ended"), PeerLost("decode-0"), None])
async def test_a_plan_that_was_lost_is_waited_for_as_long_as_the_scheduler_plans(loss):
    """An owner's word is no end; None: its process is gone."""
    cast, lost = Cast(), asyncio.Event()

    async def script(request):
        yield placed(cast.owner)
        await lost.wait()
        yield Displaced(1)
        await asyncio.sleep(2 * PATIENCE_S)
        yield placed(cast.second, epoch=2)
        yield first()
        yield Finished(4, 5, 6, 7)

    async def tokens(request):
        if request.epoch == 1:
            lost.set()
            if loss is None:
                await asyncio.Event().wait()
            raise loss
        for token in (Token(1, 11), Token(2, 12), LAST):
            yield token

    cast.script, cast.tokens = script, tokens
    async with stage(cast, PATIENCE_S) as (generation, record, owner):
        second = Server(cast, BUS)
        cast.second = await second.start("tcp://127.0.0.1:0")
        try:
            answer = asyncio.create_task(all_of(generation))
            await lost.wait()
            if loss is None:
                await owner.close()
            assert await answer == [10, 11, 12, 13]
        finally:
            await second.close()
    assert record.placed.epoch == 2


async def test_an_owner_that_is_out_of_reach_for_a_moment_is_followed_again():
    cast, submitted = Cast(), []

    async def script(request):
        submitted.append(request.request)
        yield placed(cast.owner)
        yield first()
        yield Finished(4, 5, 6, 7)

    async def tokens(request):
        if len(cast.starts) == 1:
            yield Token(1, 11)
            raise PeerLost("decode-0")
        yield Token(2, 12)
        yield LAST

    cast.script, cast.tokens = script, tokens
    async with stage(cast, 5.0) as (generation, _, _):
        assert await all_of(generation) == [10, 11, 12, 13]
    assert cast.starts == [(1, 1), (1, 2)]
    assert len(submitted) == 1


async def test_tokens_that_are_late_are_waited_for():
    """The scheduler has said the last word, and the owner's stream is open."""
    cast = Cast()

    async def tokens(request):
        for token in (Token(1, 11), Token(2, 12), LAST):
            await asyncio.sleep(2 * PATIENCE_S)
            yield token

    cast.tokens = tokens
    async with stage(cast, PATIENCE_S) as (generation, _, _):
        assert await all_of(generation) == [10, 11, 12, 13]


async def test_leaving_cancels():
    cast = Cast()

    async def script(request):
        yield placed(cast.owner)
        yield first()
        await asyncio.Event().wait()

    cast.script = script
    async with stage(cast) as (generation, _, _):
        async with aclosing(generation.tokens()) as tokens:
            assert (await anext(tokens)).id == 10
        while not cast.cancelled:
            await asyncio.sleep(0.01)
