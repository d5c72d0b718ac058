"""A decode shard's handlers: whatever ends a request, its pages are free again."""

from contextlib import aclosing

import pytest
import torch

from sps2.common.messages import Held, Hold
from sps2.common.model.pages import PagePool
from sps2.common.spans import Span
from sps2.common.transport.plane import Plane
from sps2.services.decode.holding import Key
from sps2.services.decode.service import DecodeService
from sps2.services.shard import DataLoop

from ..world import PAGE_TOKENS, tiny_model


async def test_pages_are_given_back_even_if_the_answer_cannot_be_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fails(service: DecodeService, key: Key) -> tuple[bytes, ...]:
        raise ZeroDivisionError

    monkeypatch.setattr(DecodeService, "_cache_answer", fails)
    model, data = tiny_model(), DataLoop()
    data.start()
    plane = Plane("decode-0/s", "inproc")
    await data.run(plane.start())
    pool = PagePool(model.config, 8, PAGE_TOKENS, torch.float32)
    service = DecodeService(model, plane, pool, data)
    await service.start()

    async def hold() -> None:
        async with aclosing(service.hold(Hold("r", 0, Span(0, 8), 12, ()))) as items:
            assert await anext(items) == Held(3)
            assert pool.free_pages == 5

    with pytest.raises(ZeroDivisionError):
        await hold()
    assert pool.free_pages == 8
    await service.close()
    await data.run(plane.close())
    await data.close()
