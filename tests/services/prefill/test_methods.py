"""Every exact method equals attention in one place, whatever the spans, heads and lengths."""

import pytest
import torch

from sps2.common.messages import Scheme

from ..world import greedy, oracle, tiny_model, world

METHODS = [
    Scheme("ring"),
    Scheme("ring", pipelined=False),
    Scheme("gather"),
    Scheme("gather", pipelined=False),
    Scheme("pass_q"),
    Scheme("pass_q", pipelined=False),
    Scheme("ulysses", ulysses=4),
    Scheme("ulysses", ulysses=4, pipelined=False),
    Scheme("usp", ulysses=2),
    Scheme("usp", ulysses=2, pipelined=False),
]


@pytest.mark.parametrize("scheme", METHODS, ids=str)
@pytest.mark.parametrize("window", [None, 20])
async def test_methods_equal_the_oracle(scheme: Scheme, window: int | None) -> None:
    model = tiny_model(window)
    prompt = torch.randint(97, (131,), generator=torch.Generator().manual_seed(3)).tolist()
    _, answer = await oracle(model, prompt, 8)
    async with world(model, 4, 2) as shards:
        _, tokens = await shards.run("r", prompt, greedy(8), scheme=scheme)
    assert [token.id for token in tokens] == answer
