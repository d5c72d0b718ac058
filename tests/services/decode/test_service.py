"""A decode shard's handlers: whatever ends a request, its pages are free again."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
import torch

from sps2.common.errors import PeerLost
from sps2.common.messages import Decode, Follow, Held, Hold, Token
from sps2.common.model.pages import PagePool
from sps2.common.spans import Span
from sps2.common.transport.plane import Plane
from sps2.services.data_loop import DataLoop
from sps2.services.decode.kv.holding import Key
from sps2.services.decode.service import DecodeService

from ..world import PAGE_TOKENS, greedy, tiny_model


@asynccontextmanager
async def service() -> AsyncIterator[tuple[DecodeService, PagePool]]:
    model, data = tiny_model(), DataLoop()
    data.start()
    plane = Plane("decode-0/s", "inproc")
    await data.run(plane.start())
    pool = PagePool(model.config, 8, PAGE_TOKENS, torch.float32)
    made = DecodeService(model, plane, pool, data)
    await made.start()
    yield made, pool
    await made.close()
    await data.run(plane.close())
    await data.close()


async def test_what_is_not_held_must_be_planned_anew() -> None:
    """As after a shard has started again: it is no fault of the caller's."""
    async with service() as (made, _):
        decode = Decode("r", 3, bytes(4), Token(0, 1), (), greedy(4))
        with pytest.raises(PeerLost, match="decode-0/s: request r is not held in epoch 3"):
            await anext(made.decode(decode))
        with pytest.raises(PeerLost, match="request r is not held in epoch 3"):
            await anext(made.follow(Follow("r", 3, 0)))


async def test_pages_are_given_back_even_if_the_answer_cannot_be_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fails(service: DecodeService, key: Key) -> tuple[bytes, ...]:
        raise ZeroDivisionError

    monkeypatch.setattr(DecodeService, "_cache_answer", fails)

    async def hold(made: DecodeService, pool: PagePool) -> None:
        async with aclosing(made.hold(Hold("r", 0, Span(0, 8), 12, ()))) as items:
            assert await anext(items) == Held(3)
            assert pool.free_pages == 5

    async with service() as (made, pool):
        with pytest.raises(ZeroDivisionError):
            await hold(made, pool)
        assert pool.free_pages == 8
