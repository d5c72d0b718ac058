"""Entropy-codes the whole numbers of `coded_blocks`, each row by a static table.

Rows of one channel and KV head are alike, but for their level: where steps are twice as fine,
numbers are twice as large. So a message names one table for each row of a KV head's blocks, and
blocks of level n take the table of a scale 2^n times as large.
"""

from functools import lru_cache

import torch
from torch import Tensor

from sps2.kernels import entropy
from sps2.kernels.contracts import BLOCK
from sps2.kernels.entropy_tables import RANGE, SHAPES, THIRDS, static_costs

LEVELS = 5
"""How many levels blocks can have."""
NEAR = 31
"""Larger numbers count as this one when a table is chosen."""


def write(codes: Tensor, heads: Tensor, levels: Tensor, kv_heads: int) -> tuple[Tensor, Tensor]:
    """Code blocks' numbers.

    Args:
        codes: [blocks, rows, BLOCK] int16, from `coded_blocks.to_codes`; in the last row numbers do
            not depend on the level.
        heads, levels: [blocks] int64, KV head and level of each block.

    Returns:
        The table of each row, [kv_heads, rows] uint8, and the coded numbers, [bytes] uint8.
    """
    blocks, rows, _ = codes.shape
    flat, span = codes.view(blocks * rows, BLOCK), 2 * NEAR + 1
    counts = entropy.histograms(flat, -NEAR, span)
    by_group = torch.zeros(kv_heads * LEVELS, rows * span, dtype=torch.int32)
    by_group.index_add_(0, heads * LEVELS + levels, counts.view(blocks, rows * span))
    found = by_group.view(kv_heads, LEVELS, rows, span)
    costs, finer = static_costs()[RANGE - NEAR : RANGE + NEAR + 1], _finer()
    bits = torch.zeros(kv_heads, rows, costs.shape[1])
    for level in levels.unique().tolist():
        here = found[:, level].float() @ costs
        bits[:, :-1] += here[:, :-1, finer[level]]
        bits[:, -1] += here[:, -1]
    tables = bits.argmin(-1).to(torch.uint8)
    return tables, entropy.encode_rows(flat, _which(tables, heads, levels))


def read(data: Tensor, tables: Tensor, heads: Tensor, levels: Tensor) -> Tensor:
    """Undo `write`: [blocks, rows, BLOCK] int16.

    Raises:
        ValueError: the data are damaged.
    """
    if tables.numel() and int(tables.amax()) >= SHAPES * len(THIRDS):
        raise ValueError(f"there is no table {int(tables.amax())}")
    codes = entropy.decode_rows(data, _which(tables, heads, levels), BLOCK)
    return codes.view(len(heads), tables.shape[1], BLOCK)


def _which(tables: Tensor, heads: Tensor, levels: Tensor) -> Tensor:
    """The table of each row of each block, one after the other: [blocks * rows] uint8."""
    base = tables.long()[heads]
    which = _finer()[levels[:, None], base]
    which[:, -1] = base[:, -1]
    return which.flatten().to(torch.uint8)


@lru_cache
def _finer() -> Tensor:
    """Which table stands for which at each level: [LEVELS, tables] int64."""
    first = torch.arange(SHAPES)[:, None] * len(THIRDS)
    thirds = torch.arange(len(THIRDS)) + 3 * torch.arange(LEVELS)[:, None]
    return (first[None] + thirds.clamp(max=len(THIRDS) - 1)[:, None]).flatten(1)
