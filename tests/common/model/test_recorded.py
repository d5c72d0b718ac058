"""Forwards of few rows, replayed: on a GPU as CUDA graphs, here by doing the work again."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sps2.common.model.llama import Llama
from sps2.common.model.local import LocalAttention
from sps2.common.model.weights import load


def again(work: Callable[[], Any]) -> Callable[[], Any]:
    """As a CUDA graph: what `work` gives lies where it lay the first time."""
    kept = work()

    def replayed() -> Any:
        _copy(work(), kept)
        return kept

    return replayed


def _copy(made: Any, kept: Any) -> None:
    if isinstance(made, Tensor):
        kept.copy_(made)
        return
    for one, other in zip(made, kept, strict=True):
        _copy(one, other)


@pytest.fixture
def models(checkpoint: Callable[[str], Path]) -> tuple[Llama, Llama]:
    """The same one, plain and recorded."""
    plain, recorded = (load(checkpoint("qwen3"), "float32") for _ in range(2))
    recorded._native = None  # what CPUs have for few rows goes first
    recorded.record(again)
    return plain, recorded


def prompt(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 384, (tokens,), generator=torch.Generator().manual_seed(seed))
    return ids, torch.arange(tokens)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5, 16, 33, 64, 65])
async def test_it_is_the_same_forward(models: tuple[Llama, Llama], rows: int) -> None:
    ids, at = prompt(rows)
    for asked in (None, torch.arange(rows)[-2:]):
        plain, replayed = [
            await model.forward(ids, at, LocalAttention(model.config, at), asked=asked)
            for model in models
        ]
        torch.testing.assert_close(replayed, plain, rtol=1e-4, atol=1e-4)


async def test_steps_follow_each_other(models: tuple[Llama, Llama]) -> None:
    answers = []
    for model in models:
        ids, at = prompt(40)
        attend = LocalAttention(model.config, at)
        hidden = await model.forward(ids, at, attend)
        tokens = [int(model.logits(hidden[-1:]).argmax())]
        for position in range(40, 48):
            attend.positions = torch.tensor([position])
            hidden = await model.forward(torch.tensor(tokens[-1:]), attend.positions, attend)
            tokens.append(int(model.logits(hidden).argmax()))
        answers.append(tokens)
    assert answers[0] == answers[1]


async def test_two_at_a_time_do_not_mix(models: tuple[Llama, Llama]) -> None:
    plain, recorded = models
    inputs = [prompt(3, seed) for seed in range(2)]
    expected = [
        await plain.forward(ids, at, LocalAttention(plain.config, at)) for ids, at in inputs
    ]

    async def slowly(ids: Tensor, at: Tensor) -> Tensor:
        attend = LocalAttention(recorded.config, at)

        async def waiting(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = await attend(layer, q, k, v)
            await asyncio.sleep(0)
            return out

        return await recorded.forward(ids, at, waiting)

    for got, wanted in zip(
        await asyncio.gather(*(slowly(*each) for each in inputs)), expected, strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
