"""The attention oracle is itself checked against torch's."""

import pytest
import torch
import torch.nn.functional as F

from sps2.common.model.config import ModelConfig, Rope
from sps2.common.model.local import LocalAttention


def config(window: int | None) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=8,
        hidden_size=32,
        intermediate_size=8,
        layers=1,
        heads=4,
        kv_heads=2,
        head_dim=8,
        max_context=64,
        norm_eps=1e-6,
        rope=Rope(),
        windows=(window,),
    )


@pytest.mark.parametrize("window", [None, 1, 5])
async def test_equals_sdpa(window: int | None) -> None:
    seeded = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(20, heads, 8, generator=seeded) for heads in (4, 2, 2))
    behind = torch.arange(20)[:, None] - torch.arange(20)
    mask = (behind >= 0) & (behind < (window or 99))
    heads_first = [x.transpose(0, 1) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(
        heads_first[0], heads_first[1], heads_first[2], mask, enable_gqa=True
    ).transpose(0, 1)

    attend = LocalAttention(config(window), torch.arange(12))
    first = await attend(0, q[:12], k[:12], v[:12])
    attend.positions = torch.arange(12, 20)
    second = await attend(0, q[12:], k[12:], v[12:])
    torch.testing.assert_close(torch.cat((first, second)), expected, atol=1e-5, rtol=1e-5)
