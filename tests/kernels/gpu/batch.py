"""Decode batches over pages that lie in any order, and what attention is defined to give."""

from typing import NamedTuple

import torch
from torch import Tensor

from sps2.kernels import Run, Scales, State
from sps2.kernels.kv_quantize import quantise_rows, restore_rows
from sps2.kernels.reference import reference_attention


class Batch(NamedTuple):
    """Runs of each row in a pool of `slots`, and the positions of the queries."""

    runs: list[list[Run]]
    positions: list[int]
    slots: int


def batch_of(
    lengths: list[int], page: int, start: int = 0, ahead: int = -1, common: int = 0
) -> Batch:
    """Rows of so many keys from `start` on, queried `ahead` of their end.

    Args:
        common: pages that all rows which are long enough begin with.
    """
    pages = [-(-length // page) for length in lengths]
    order = torch.randperm(common + sum(pages)).tolist()
    shared = [order.pop() for _ in range(common)]
    runs = []
    for count, length in zip(pages, lengths, strict=True):
        first = shared if length >= common * page else []
        own = [*first, *(order.pop() for _ in range(count - len(first)))]
        runs.append(
            [
                Run(at * page, start + n * page, min(page, length - n * page))
                for n, at in enumerate(own)
            ]
        )
    positions = [max(0, start + length + ahead) for length in lengths]
    return Batch(runs, positions, (common + sum(pages)) * page)


def pool_of(
    slots: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Scales | None, Tensor]:
    """Keys and values [2, slots, kv_heads, dim], their scales in int8, and what they stand for."""
    whole = torch.randn(2, kv_heads, slots, dim).transpose(1, 2)
    if dtype != torch.int8:
        pool = whole.to(dtype)
        return pool, None, pool
    (k, k_scale), (v, v_scale) = (quantise_rows(x, torch.float32) for x in whole)
    restored = [restore_rows(x, by, torch.float32) for x, by in ((k, k_scale), (v, v_scale))]
    return torch.stack((k, v)), (k_scale, v_scale), torch.stack(restored)


def defined(q: Tensor, pool: Tensor, batch: Batch, window: int | None = None) -> State:
    """Attention of each row to its own keys, by the definition."""
    states = []
    for row, (own, position) in enumerate(zip(batch.runs, batch.positions, strict=True)):
        slots = [run.slot + offset for run in own for offset in range(run.tokens)]
        places = [run.start + offset for run in own for offset in range(run.tokens)]
        at = torch.tensor([position])
        states.append(
            reference_attention(
                q[row : row + 1], *pool[:, slots], at, torch.tensor(places), window=window
            )
        )
    none = State(q.new_zeros(q.shape).float()[:0], q.new_zeros(q.shape[:2]).float()[:0])
    out, lse = (torch.cat(each) for each in zip(none, *states, strict=True))
    return State(out, lse)
