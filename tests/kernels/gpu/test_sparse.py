"""Block-sparse attention sees what the mask keeps of what is visible, and nothing else."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sps2.kernels import Run, State, empty_state
from sps2.kernels.contracts import BLOCK
from sps2.kernels.gpu import sparse
from sps2.kernels.reference import reference_attention

from .batch import pool_of
from .close import DTYPES, near_state


def definition(
    q: Tensor, pool: Tensor, mask: Tensor, at: Tensor, start: int, window: int | None
) -> State:
    """Block by block of queries, head by head, over the rows of the kept blocks."""
    whole = empty_state(*q.shape)
    group = q.shape[1] // pool.shape[2]
    for row in range(0, len(q), BLOCK):
        rows = slice(row, min(row + BLOCK, len(q)))
        for head in range(q.shape[1]):
            kept = mask[head * len(mask) // q.shape[1], row // BLOCK]
            keys = kept.repeat_interleave(BLOCK)[: pool.shape[1]].nonzero()[:, 0]
            k, v = pool[:, keys, head // group, None]
            mine = q[rows, head, None]
            state = reference_attention(mine, k, v, at[rows], start + keys, window=window)
            whole.out[rows, head], whole.lse[rows, head] = state.out[:, 0], state.lse[:, 0]
    return whole


@given(
    n=st.integers(0, 150),
    m=st.integers(0, 300),
    start=st.integers(0, 100),
    first=st.integers(0, 400),
    gap=st.integers(0, 100),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 8),
    per=st.sampled_from(["all", "kv", "query"]),
    dim=st.sampled_from([16, 64, 80, 96, 128, 256]),
    window=st.one_of(st.none(), st.integers(1, 200)),
    kept=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    size=st.sampled_from([1.0, 12.0]),
    dtype=st.sampled_from([*DTYPES, torch.int8]),
    held=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=10, deadline=None)
def test_a_mask_of_blocks(
    n: int,
    m: int,
    start: int,
    first: int,
    gap: int,
    kv_heads: int,
    group: int,
    per: str,
    dim: int,
    window: int | None,
    kept: float,
    size: float,
    dtype: torch.dtype,
    held: bool,
    seed: int,
) -> None:
    """Queries in two runs with a gap; nothing selected; rows before all keys."""
    torch.manual_seed(seed)
    compute = torch.float32 if dtype == torch.int8 else dtype
    heads = kv_heads * group
    masks = {"all": 1, "kv": kv_heads, "query": heads}[per]
    pool, scales, whole = pool_of(m, kv_heads, dim, dtype)
    q = (torch.randn(n, heads, dim) * size).to(compute)
    mask = torch.rand(masks, -(-n // BLOCK), -(-m // BLOCK)) < kept
    queries = [Run(0, first, n // 2), Run(n // 2, first + n // 2 + gap, n - n // 2)]
    at = torch.cat([torch.arange(run.start, run.start + run.tokens) for run in queries])
    state = empty_state(*q.shape) if held else None
    got = sparse.attend(q, *pool, mask, queries, start, dim**-0.5, window, state, scales)
    near_state(got, definition(q, whole, mask, at, start, window), compute, size)


def test_over_what_a_state_has_seen() -> None:
    torch.manual_seed(0)
    q, (k, v) = torch.randn(70, 2, 64), torch.randn(2, 200, 1, 64)
    mask = torch.rand(2, 2, 4) < 0.5
    queries, state = [Run(0, 130, 70)], None
    for part in (mask, ~mask):
        state = sparse.attend(q, k, v, part, queries, 0, 0.125, state=state)
    assert state is not None
    at = torch.arange(130, 200)
    near_state(state, reference_attention(q, k, v, at, torch.arange(200), 0.125), q.dtype)


Q, K = torch.zeros(70, 4, 64), torch.zeros(100, 2, 64)
MASK = torch.ones(2, 2, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("mask has shape", {"mask": MASK[:, :1]}),
        ("mask is float32", {"mask": MASK.float()}),
        ("mask is on meta", {"mask": MASK.to("meta")}),
        ("mask has 3 masks", {"mask": MASK[:1].expand(3, 2, 2)}),
        ("queries cover 60 rows", {"queries": [Run(0, 0, 60)]}),
        ("k has 3 heads", {"k": torch.zeros(100, 3, 64), "v": torch.zeros(100, 3, 64)}),
        ("window is 0", {"window": 0}),
    ],
)
def test_bad_input_is_named(named: str, changes: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"q": Q, "k": K, "v": K, "mask": MASK, "queries": [Run(0, 0, 70)]}
    with pytest.raises(ValueError, match=named):
        sparse.attend(**(usual | {"start": 0, "scale": 0.1} | changes))
