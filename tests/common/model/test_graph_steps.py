"""Decode steps, replayed: on a GPU as CUDA graphs, here by doing the work again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sps2.common.model.llama import Llama
from sps2.common.model.local import LocalAttention
from sps2.common.model.weights import load

from ...replays import again


@pytest.fixture
def models(checkpoint: Callable[[str], Path]) -> tuple[Llama, Llama]:
    """The same one, plain and recorded."""
    plain, recorded = (load(checkpoint("qwen3"), "float32") for _ in range(2))
    recorded.record(again)
    return plain, recorded


@pytest.mark.parametrize("rows", [1, 3, 16, 65, 256, 257])
async def test_it_is_the_same_step(models: tuple[Llama, Llama], rows: int) -> None:
    for seed in range(2):
        ids = torch.randint(0, 384, (rows,), generator=torch.Generator().manual_seed(seed))
        at = torch.arange(rows)
        plain, replayed = [
            await model.step(ids, at, LocalAttention(model.config, at)) for model in models
        ]
        torch.testing.assert_close(replayed, plain, rtol=1e-4, atol=1e-4)


async def test_steps_follow_each_other(models: tuple[Llama, Llama]) -> None:
    answers = []
    for model in models:
        ids, at = torch.arange(40), torch.arange(40)
        attend = LocalAttention(model.config, at)
        hidden = await model.forward(ids, at, attend)
        tokens = [int(model.logits(hidden[-1:]).argmax())]
        for position in range(40, 48):
            attend.positions = torch.tensor([position])
            hidden = await model.step(torch.tensor(tokens[-1:]), attend.positions, attend)
            tokens.append(int(model.logits(hidden).argmax()))
        answers.append(tokens)
    assert answers[0] == answers[1]
