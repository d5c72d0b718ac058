"""A request that loses its shard, or its pages, and goes on."""

import asyncio
import struct

import pytest

from sps2.common.errors import PeerLost, Preempted
from sps2.common.messages import (
    Finished,
    FirstToken,
    Token,
)

from .test_generate import LAST, Cast, all_of, placed, stage


@pytest.mark.parametrize("told_by", ["scheduler", "owner"])
async def test_goes_on_elsewhere_after_the_loss_of_a_shard(told_by):
    cast, submitted, stopped = Cast(), [], asyncio.Event()

    async def script(request):
        submitted.append(request)
        yield placed(cast.owner)
        yield FirstToken(Token(request.sampling.answered, 10 + request.sampling.answered))
        if len(submitted) == 2:
            yield Finished(4, 5, 6, 7)
            return
        await stopped.wait()
        raise PeerLost("decode-0")

    async def tokens(request):
        if len(submitted) == 1:
            yield Token(1, 11)
            if told_by == "owner":
                raise PeerLost("decode-0")
            await asyncio.sleep(0.05)
            stopped.set()
            await asyncio.Event().wait()
        yield LAST

    cast.script, cast.tokens = script, tokens
    async with stage(cast, 1.0) as (generation, record, _):
        assert await all_of(generation) == [10, 11, 12, 13]
    prompts = [struct.unpack(f"<{len(each.prompt) // 4}i", each.prompt) for each in submitted]
    assert prompts == [(1, 2, 3), (1, 2, 3, 10, 11)]
    assert [each.sampling.answered for each in submitted] == [0, 2]
    assert len({each.request for each in submitted}) == 2
    assert (record.tokens, record.placed.epoch, record.first.token.id) == (4, 2, 10)


async def test_goes_on_as_often_as_its_pages_went_to_others():
    """More often than after losses: nothing is wrong."""
    cast, submitted = Cast(), []

    async def script(request):
        submitted.append(request)
        answered = request.sampling.answered
        yield placed(cast.owner)
        last = answered == 7
        yield FirstToken(Token(answered, 10 + answered, None, "length" if last else None))
        if last:
            yield Finished(8, 5, 6, 7)
            return
        raise Preempted(f"request {request.request} gave its KV up to others", 10)

    async def tokens(request):
        await asyncio.Event().wait()
        yield LAST

    cast.script, cast.tokens = script, tokens
    async with stage(cast) as (generation, record, _):
        assert await all_of(generation) == list(range(10, 18))
    assert [each.sampling.answered for each in submitted] == list(range(8))
    assert [each.room_tokens for each in submitted] == [0] + [20] * 7
    assert (len({each.request for each in submitted}), record.tokens) == (8, 8)
