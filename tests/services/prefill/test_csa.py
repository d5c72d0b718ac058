"""CSA: exact where nothing is dropped, and exactly its kept set where something is."""

import pytest
import torch

from sps2.common.messages import Scheme, Selection

from ..world import greedy, oracle, tiny_model, world

LAYERS = 3


def selection(drop: float, fine: float = 0.0, **changes: object) -> Selection:
    return Selection((drop,) * LAYERS, (fine,) * LAYERS, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 4])
async def test_threshold_zero_is_exact(ranks: int, pipelined: bool, rounds: int) -> None:
    model = tiny_model()
    prompt = torch.randint(97, (333,), generator=torch.Generator().manual_seed(3)).tolist()
    _, answer = await oracle(model, prompt, 8)
    scheme = Scheme("csa", selection=selection(0, rounds=rounds), pipelined=pipelined)
    async with world(model, ranks, 2, pages=128) as shards:
        replies, tokens = await shards.run("r", prompt, greedy(8), scheme=scheme)
    assert [token.id for token in tokens] == answer
    done = [reply.prefilled.exchanged for reply in replies]
    assert all(each.blocks == each.kept_blocks for each in done)
