"""The parts of an embedding add up to what one process computes, at any degree and method."""

import pytest
import torch

from sps2.common.device import HOST
from sps2.common.model.attend import inline
from sps2.common.model.local import LocalAttention
from sps2.services.prefill.pooling import pooled

from ...twin import TwinDevice
from ..world import greedy, tiny_model, world


@pytest.mark.parametrize("length", [1, 5, 64])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("pooling", ["last", "mean"])
async def test_parts_add_up_to_the_oracles(pooling: str, ranks: int, length: int) -> None:
    model = tiny_model()
    prompt = torch.randint(97, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    positions = torch.arange(length)
    attend = LocalAttention(model.config, positions)
    hidden = (await model.forward(torch.tensor(prompt), positions, attend)).float()
    expected = hidden[-1] if pooling == "last" else hidden.sum(0)
    async with world(model, ranks, 1) as shards:
        replies, tokens = await shards.run("r", prompt, greedy(1, pooling=pooling))
    assert len(tokens) == 1
    parts = [reply.prefilled.pooled for reply in replies if reply.prefilled.pooled]
    assert len(parts) == (1 if pooling == "last" else min(ranks, length))
    total = sum(torch.frombuffer(bytearray(part), dtype=torch.float32) for part in parts)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


async def test_nothing_is_pooled_unless_wanted() -> None:
    async with world(tiny_model(), 2, 1) as shards:
        replies, _ = await shards.run("r", [1] * 20, greedy(1))
    assert not any(reply.prefilled.pooled for reply in replies)


async def test_another_device_brings_it_down() -> None:
    rows = torch.arange(6.0).view(2, 3)
    there = TwinDevice().up((rows,))[0]
    part = await pooled("mean", there, True, TwinDevice(), inline)
    assert torch.frombuffer(bytearray(part), dtype=torch.float32).tolist() == [3.0, 5.0, 7.0]


async def test_a_mean_is_summed_in_float32() -> None:
    rows = torch.full((4096, 3), 0.1, dtype=torch.bfloat16)
    part = await pooled("mean", rows, True, HOST, inline)
    total = torch.frombuffer(bytearray(part), dtype=torch.float32)
    torch.testing.assert_close(total, rows.double().sum(0).float())
    assert not await pooled("last", rows, False, HOST, inline), "another rank has the last token"
