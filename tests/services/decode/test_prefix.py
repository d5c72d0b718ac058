"""A question about a prefix that this model could not ask is answered with nothing: no crash."""

import asyncio

import pytest
import torch

from sps2.common.transport.frame import frame_for

from ..world import greedy, tiny_model, world


@pytest.mark.parametrize(
    ("layer", "head", "tensors"),
    [
        (0, 0, (torch.ones(3, 6, 32),)),
        (0, 0, (torch.ones(3, 7, 16),)),
        (0, 1, (torch.ones(3, 6, 16),)),
        (0, 0, (torch.ones(3, 12, 16),)),
        (3, 0, (torch.ones(3, 6, 16),)),
        (0, 0, (torch.ones(3, 6, 16, dtype=torch.int8),)),
        (0, 0, (torch.ones(6, 16),)),
        (0, 0, ()),
        (0, 0, (torch.ones(3, 6, 16), torch.ones(3, 6, 16))),
    ],
    ids=lambda value: (
        str([list(each.shape) for each in value]) if isinstance(value, tuple) else str(value)
    ),
)
async def test_wrong_questions(layer: int, head: int, tensors: tuple[torch.Tensor, ...]) -> None:
    async with asyncio.timeout(60), world(tiny_model(), 1, 1) as shards:
        await shards.hold("r", list(range(8)), greedy(1))
        asker, decode = shards.prefill[0], shards.decode[0].plane
        for plane, peer in ((asker, decode.peer), (decode, asker.peer)):
            plane.introduce(peer)
        with asker.open("r", 0) as inbox:
            frame = frame_for("prefix_q", ("r",), (0,), layer, 0, tensors, head)
            await asker.send(decode.name, frame, tensors)
            assert await inbox.recv("prefix_state", layer, 0, decode.name) == ()
