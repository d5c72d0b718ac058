"""Prefill attention agrees with its definition wherever it is asked for."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sps2.kernels import Run, State, attention
from sps2.kernels.reference import reference_attention

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def expected(
    q: Tensor, k: Tensor, v: Tensor, q_start: int, k_start: int, **options: float
) -> State:
    q_positions = torch.arange(q_start, q_start + len(q))
    k_positions = torch.arange(k_start, k_start + len(k))
    return reference_attention(q, k, v, q_positions, k_positions, **options)  # type: ignore[arg-type]


def attend(q: Tensor, k: Tensor, v: Tensor, q_start: int, k_start: int, **options: Any) -> State:
    queries, keys = [Run(0, q_start, len(q))], [Run(0, k_start, len(k))]
    return attention(q, k, v, queries=queries, keys=keys, **options)


def check(got: State, want: State, dtype: torch.dtype) -> None:
    assert got.out.dtype == torch.float32
    assert got.lse.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert_close(got.out.float(), want.out, atol=tolerance, rtol=tolerance)
    assert_close(got.lse, want.lse, atol=tolerance, rtol=tolerance)


def tensors(
    n: int, m: int, kv_heads: int, group: int, dim: int, dtype: torch.dtype, size: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * 1000 + m)
    q = torch.randn(n, kv_heads * group, dim, generator=generator) * size
    k = torch.randn(m, kv_heads, dim, generator=generator) * size
    v = torch.randn(m, kv_heads, dim, generator=generator)
    return q.to(dtype), k.to(dtype), v.to(dtype)


@given(
    n=st.integers(0, 150),
    m=st.integers(0, 300),
    q_start=st.integers(0, 400),
    k_start=st.integers(0, 400),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 8),
    dim=st.sampled_from([64, 80, 96, 128]),
    window=st.one_of(st.none(), st.integers(1, 300)),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=80, deadline=None)
def test_it_agrees_with_the_definition(
    n: int,
    m: int,
    q_start: int,
    k_start: int,
    kv_heads: int,
    group: int,
    dim: int,
    window: int | None,
    dtype: torch.dtype,
) -> None:
    q, k, v = tensors(n, m, kv_heads, group, dim, dtype)
    got = attend(q, k, v, q_start, k_start, window=window)
    options = {} if window is None else {"window": window}
    check(got, expected(q, k, v, q_start, k_start, **options), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_blocks_of_queries(dtype: torch.dtype) -> None:
    q, k, v = tensors(700, 700, 3, 3, 64, dtype)
    got = attend(q, k, v, 0, 0)
    check(got, expected(q, k, v, 0, 0), dtype)
    again = attend(q, k, v, 0, 0)
    assert torch.equal(got.out, again.out)
    assert torch.equal(got.lse, again.lse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 8300])
def test_more_keys_than_are_met_at_once(dtype: torch.dtype, window: int | None) -> None:
    q, k, v = tensors(33, 9000, 1, 2, 64, dtype)
    options = {} if window is None else {"window": window}
    got = attend(q, k, v, 8900, 0, window=window)
    check(got, expected(q, k, v, 8900, 0, **options), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [3.0, 10.0])
def test_large_scores_are_as_good_as_those_of_the_reference(
    dtype: torch.dtype, size: float
) -> None:
    """Scores of several hundred, peaks that no sample of the keys shows."""
    q, k, v = tensors(300, 300, 2, 3, 64, dtype, size)
    k[77] = q[200, ::3] * 2
    got, want = attend(q, k, v, 0, 0), expected(q, k, v, 0, 0)
    tolerance = 1e-3 if dtype == torch.float32 else 4e-2
    wrong = (got.out.float() - want.out).abs() > tolerance * (1 + want.out.abs())
    assert wrong.float().mean() < 0.002
    assert_close(got.lse, want.lse, atol=0.1, rtol=1e-3)


def test_an_offset_common_to_all_keys_costs_no_precision() -> None:
    """Models with a bias on k have scores of a hundred that differ by a few."""
    q, k, v = tensors(400, 400, 2, 2, 64, torch.bfloat16)
    offset = torch.randn(64) * 4
    q, k = (q + offset).bfloat16(), (k + offset).bfloat16()
    got, want = attend(q, k, v, 0, 0), expected(q, k, v, 0, 0)
    error = (got.out.float() - want.out).pow(2).mean().sqrt() / want.out.pow(2).mean().sqrt()
    assert error < 8e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_and_strided_views(dtype: torch.dtype) -> None:
    q, k, v = tensors(50, 60, 2, 2, 64, dtype)
    wide = torch.stack((k, v), 1).transpose(0, 2).contiguous().transpose(0, 2)
    got = attend(q, wide[:, 0], wide[:, 1], 20, 0, scale=0.3)
    check(got, expected(q, k, v, 20, 0, scale=0.3), dtype)


@given(
    pieces=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    spans=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    gap=st.integers(0, 100),
    group=st.integers(1, 8),
    window=st.one_of(st.none(), st.integers(1, 200)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_pieces_that_lie_anywhere_add_up(
    pieces: list[int],
    spans: list[int],
    gap: int,
    group: int,
    window: int | None,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Queries in several runs, keys in several calls of several runs, rows in any order."""
    tokens = sum(pieces)
    q, k, v = tensors(sum(spans), tokens + 5, 2, group, 64, dtype)
    queries, start, row = [], seed % 50, 0
    for length in spans:
        queries.append(Run(row, start, length))
        row, start = row + length, start + length + gap
    keys, at, slot = [], 0, tokens
    for length in pieces:
        slot -= length
        keys.append(Run(slot, at, length))
        at += length
    state = None
    for half in (keys[::2], keys[1::2]):
        state = attention(q, k, v, queries=queries, keys=half, window=window, state=state)
    assert state is not None
    rows = torch.cat([torch.arange(run.slot, run.slot + run.tokens) for run in keys])
    asked = torch.cat([torch.arange(run.start, run.start + run.tokens) for run in queries])
    want = reference_attention(q, k[rows], v[rows], asked, torch.arange(tokens), window=window)
    check(state, want, dtype)
