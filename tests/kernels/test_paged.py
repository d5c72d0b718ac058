"""Decode attention over pages agrees with attention over the same keys in a row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sps2.kernels import PagedRows, Run, paged_attention
from sps2.kernels.reference import reference_attention

PAGE = 4


@given(
    lengths=st.lists(st.one_of(st.integers(0, 90), st.integers(640, 700)), max_size=5),
    start=st.integers(0, 50),
    ahead=st.integers(-60, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 8),
    dim=st.sampled_from([64, 80, 96, 128]),
    window=st.one_of(st.none(), st.integers(1, 800)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    size=st.sampled_from([1.0, 4.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_pages_in_any_order_give_what_contiguous_keys_give(
    lengths: list[int],
    start: int,
    ahead: int,
    kv_heads: int,
    group: int,
    dim: int,
    window: int | None,
    dtype: torch.dtype,
    size: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    pages = [-(-length // PAGE) for length in lengths]
    order = torch.randperm(sum(pages)).tolist()
    pool = torch.randn(2, kv_heads, sum(pages) * PAGE, dim).to(dtype)
    k_pool, v_pool = pool[0].transpose(0, 1), pool[1].transpose(0, 1)
    q = (torch.randn(len(lengths), kv_heads * group, dim) * size).to(dtype)

    runs, positions, wanted = [], [], []
    for row, length in enumerate(lengths):
        own = [order.pop() for _ in range(pages[row])]
        runs.append(
            [
                Run(page * PAGE, start + at * PAGE, min(PAGE, length - at * PAGE))
                for at, page in enumerate(own)
            ]
        )
        positions.append(max(0, start + length + ahead))
        slots = [run.slot + offset for run in runs[-1] for offset in range(run.tokens)]
        wanted.append(
            reference_attention(
                q[row : row + 1],
                k_pool[slots],
                v_pool[slots],
                torch.tensor(positions[-1:]),
                torch.arange(start, start + length),
                window=window,
            )
        )

    out, lse = paged_attention(q, k_pool, v_pool, PagedRows(runs, positions), window=window)
    assert out.shape == q.shape
    assert out.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2 * size
    for row, want in enumerate(wanted):
        assert_close(out[row].float(), want.out[0], atol=tolerance, rtol=tolerance)
        assert_close(lse[row], want.lse[0], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_offset_common_to_all_keys_costs_no_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    offset = torch.randn(64) * 4
    k, v = (torch.randn(700, 2, 64) + offset).to(dtype), torch.randn(700, 2, 64).to(dtype)
    q = (torch.randn(1, 4, 64) + offset).to(dtype)
    got = paged_attention(q, k, v, PagedRows([[Run(0, 0, 500), Run(500, 500, 200)]], [699]))
    want = reference_attention(q, k, v, torch.tensor([699]), torch.arange(700))
    error = (got.out.float() - want.out).pow(2).mean().sqrt() / want.out.pow(2).mean().sqrt()
    assert error < (1e-4 if dtype == torch.float32 else 1e-2)
    assert_close(got.lse, want.lse, atol=0.05, rtol=1e-3)


def test_more_keys_than_one_run() -> None:
    torch.manual_seed(0)
    k, v, q = (torch.randn(3000, 3, 64).bfloat16() for _ in range(3))
    q = q[:1].repeat_interleave(3, 1)
    runs = [[Run(0, 0, 1000), Run(2000, 1000, 1000), Run(1000, 2000, 1000)]]
    got = paged_attention(q, k, v, PagedRows(runs, [2999]))
    order = torch.cat([torch.arange(run.slot, run.slot + run.tokens) for run in runs[0]])
    want = reference_attention(q, k[order], v[order], torch.tensor([2999]), torch.arange(3000))
    assert_close(got.out.float(), want.out, atol=5e-3, rtol=2e-2)
    assert_close(got.lse, want.lse, atol=2e-3, rtol=1e-3)
