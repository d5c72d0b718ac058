"""Codes of blocks come back from their stream, which is about as short as it can be."""

import pytest
import torch
from torch import Tensor

from sps2.kernels.coded_streams import read, write
from sps2.kernels.contracts import BLOCK

KV_HEADS, ROWS = 2, 9


def codes_of(blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of Laplace distributions whose scale depends on row, KV head and level."""
    torch.manual_seed(blocks)
    heads = torch.arange(blocks) * KV_HEADS // max(1, blocks)
    levels = torch.randint(0, 5, (blocks,))
    scale = torch.exp2(torch.rand(KV_HEADS, ROWS) * 4 - 2)[heads] * torch.exp2(levels[:, None])
    scale[:, -1] = 2
    x = torch.distributions.Laplace(0, scale[..., None]).sample((BLOCK,))
    codes = x[..., 0].permute(1, 2, 0).round().to(torch.int16).contiguous()
    return codes, heads, levels


@pytest.mark.parametrize("blocks", [0, 1, 40])
def test_codes_come_back(blocks: int) -> None:
    codes, heads, levels = codes_of(blocks)
    if blocks:
        codes[0, 0, :3] = torch.tensor([32767, -32767, 1024])
    tables, data = write(codes, heads, levels, KV_HEADS)
    assert tables.shape == (KV_HEADS, ROWS)
    assert torch.equal(read(data, tables, heads, levels), codes)


def test_the_stream_is_about_as_short_as_one_for_each_level() -> None:
    """The table of a row fits all levels of its blocks: within 3 % of each level's entropy."""
    codes, heads, levels = codes_of(400)
    _, data = write(codes, heads, levels, KV_HEADS)
    alike = [(row, levels == level) for row in range(ROWS - 1) for level in range(5)]
    alike.append((ROWS - 1, levels >= 0))
    bits = 0.0
    for row, which in alike:
        for head in range(KV_HEADS):
            numbers = codes[which & (heads == head), row].flatten().int()
            counts = numbers.unique(return_counts=True)[1].double()
            bits -= float((counts * (counts / counts.sum()).log2()).sum())
    assert 0.99 * bits < 8 * len(data) < 1.03 * bits + 32 * 32


def test_damaged_streams_are_refused() -> None:
    codes, heads, levels = codes_of(20)
    tables, data = write(codes, heads, levels, KV_HEADS)
    for broken in (data[:-2], data[:50], data[:0], data.flip(0)):
        with pytest.raises(ValueError, match="entropy-coded"):
            read(broken.contiguous(), tables, heads, levels)
    with pytest.raises(ValueError, match="no table 200"):
        read(data, torch.full_like(tables, 200), heads, levels)
