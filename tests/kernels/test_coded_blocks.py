"""Keys and values come back from their codes to half a step, wherever they are."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sps2.common.model.config import Rope
from sps2.common.model.rope import Rotary
from sps2.kernels.coded_blocks import (
    Offsets,
    Steps,
    from_codes,
    query_weight,
    scaled,
    to_codes,
)
from sps2.kernels.contracts import BLOCK
from sps2.kernels.rows import rotate

TOKENS, HEADS, DIM = 5 * BLOCK, 2, 32
STEPS = Steps(0.2, 1.0)
YARN = Rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)


def inputs(rope: Rope) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Keys before rotation, keys, values, and the table of positions from 1,000 on."""
    torch.manual_seed(0)
    before = torch.randn(TOKENS, HEADS, DIM) + 5 * torch.randn(HEADS, DIM)
    v = torch.randn(TOKENS, HEADS, DIM) * torch.rand(TOKENS, HEADS, 1).add(0.01) ** 4
    table = Rotary(rope, DIM).table(torch.arange(1000, 1000 + TOKENS), torch.float32)
    return before, rotate(before, table), v, table


@pytest.mark.parametrize("rope", [Rope(), YARN], ids=["plain", "yarn"])
def test_errors_are_at_most_half_a_step(rope: Rope) -> None:
    before, k, v, table = inputs(rope)
    kept = torch.rand(HEADS, TOKENS // BLOCK) < 0.7
    levels = torch.randint(0, 5, (int(kept.sum()),))
    weight = torch.rand(HEADS, DIM // 2).add_(0.1).repeat(1, 2)
    of = scaled(k, v, table)
    codes = to_codes(of, kept, levels, weight, STEPS)
    assert (codes.dtype, codes.shape) == (torch.int16, (len(levels), 2 * DIM + 1, BLOCK))
    offsets = Offsets(of.mean, of.middle)
    keys, values = from_codes(codes, kept, levels, weight, STEPS, offsets, table)

    def chosen(x: Tensor) -> Tensor:
        return x.transpose(0, 1).unflatten(1, (-1, BLOCK))[kept]

    heads, blocks = kept.nonzero().unbind(1)
    there = Rotary(rope, DIM).table(1000 + torch.arange(TOKENS), torch.float32)
    square = there[0][0, 0, 0] ** 2 + there[1][0, 0, 0] ** 2
    tokens = (blocks[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
    cosines, sines = (side[tokens] / square for side in there)
    back = rotate(keys.view(-1, 1, DIM), (cosines, -sines)).view_as(keys)
    half = torch.exp2(-levels.float())[:, None, None] / 2
    off = (back - chosen(before)) * weight[heads][:, None]
    assert ((off.abs() - 1e-4) <= half * STEPS.keys).all()
    size = chosen(v).square().mean(-1, keepdim=True).sqrt()
    off = (values - chosen(v)).abs() / size
    assert (off <= half * STEPS.values * 2 ** (1 / 8) + 1e-4).all()


def test_the_weight_is_that_of_scores() -> None:
    """Equal errors in all channels, each over its weight, change scores by their size."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(4000, 6, DIM, generator=generator) * torch.logspace(-1, 1, DIM)
    weight = query_weight(q, HEADS, 0.125)
    assert torch.equal(weight[:, : DIM // 2], weight[:, DIM // 2 :])
    error = torch.randn(500, HEADS, DIM, generator=generator) / weight * 0.01
    changed = torch.einsum("rhgd,ehd->hrge", q.unflatten(1, (HEADS, -1)), error) * 0.125
    assert_close(float(changed.std()), 0.01 * DIM**0.5, rtol=0.1, atol=0)


def test_tokens_without_a_value_and_codes_beyond_16_bits() -> None:
    _, k, v, table = inputs(Rope())
    k[70] = 1e6
    v[3] = 0
    kept = torch.ones(HEADS, TOKENS // BLOCK, dtype=torch.bool)
    levels = torch.full((kept.numel(),), 4)
    weight = torch.ones(HEADS, DIM)
    of = scaled(k, v, table)
    codes = to_codes(of, kept, levels, weight, STEPS)
    offsets = Offsets(of.mean, of.middle)
    keys, values = from_codes(codes, kept, levels, weight, STEPS, offsets, table)
    assert keys.isfinite().all()
    assert float(values.view(HEADS, TOKENS, DIM)[:, 3].abs().max()) < 1e-6
