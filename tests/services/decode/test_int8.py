"""KV at rest in 8 bits: where it lies makes no difference, and little is lost."""

import pytest
import torch

from ..world import greedy, tiny_model, world


@pytest.mark.parametrize("level", [True, False], ids=["native", "torch"])
async def test_holders_answer_from_eight_bits(level: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not level:
        monkeypatch.setattr("sps2.kernels.native.level", 0)
    model = tiny_model()
    prompt = torch.randint(97, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    answers, chosen = [], []
    for holders, kv in ((1, None), (1, torch.int8), (3, torch.int8)):
        async with world(model, 2, holders, pages=128, kv=kv) as shards:
            _, tokens = await shards.run("r", prompt, greedy(12, logprobs=1))
        answers.append([token.id for token in tokens])
        chosen.append(tokens[1].logprobs.logprob if tokens[1].logprobs else 0.0)
    assert answers[1] == answers[2]
    assert chosen[0] == pytest.approx(chosen[1], abs=0.3)
    assert chosen[0] != chosen[1]
