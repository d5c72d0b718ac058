"""Keys and values at rest in 8 bits: attention to them is attention to what they restore to."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sps2.kernels import PagedRows, Run, attention, paged_attention
from sps2.kernels.kv_quantize import quantise_rows, restore_rows
from sps2.kernels.reference import reference_attention


def test_half_a_step() -> None:
    x = torch.randn(50, 3, 64) * 5
    levels, scale = quantise_rows(x, torch.float32)
    assert bool(
        ((restore_rows(levels, scale, x.dtype) - x).abs() <= scale[..., None] * 0.501).all()
    )
    zeros = torch.zeros(2, 1, 16)
    assert torch.equal(restore_rows(*quantise_rows(zeros), zeros.dtype), zeros)


@given(
    n=st.integers(1, 60),
    m=st.integers(1, 300),
    group=st.integers(1, 5),
    dim=st.sampled_from([16, 64, 80, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_attention_to_a_pool_in_eight_bits(
    n: int, m: int, group: int, dim: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    q = torch.randn(n, 2 * group, dim).to(dtype)
    pool = torch.empty(2, 2, m + 70, dim, dtype=torch.int8).transpose(1, 2)
    scales = torch.empty(2, 2, m + 70).transpose(1, 2)
    for side in range(2):
        pool[side], scales[side] = quantise_rows(torch.randn(m + 70, 2, dim), torch.float32)
    k, v = (restore_rows(pool[side], scales[side], torch.float32) for side in range(2))
    half = m // 2
    runs = [Run(70 + half, 0, m - half), Run(3, m - half, half)]
    order = torch.cat([torch.arange(r.slot, r.slot + r.tokens) for r in runs])
    of = scales[0], scales[1]
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2

    got = attention(q, *pool, queries=[Run(0, m - 1, n)], keys=runs, scales=of)
    at = torch.arange(m - 1, m - 1 + n)
    want = reference_attention(q, k[order], v[order], at, torch.arange(m))
    assert_close(got, want, atol=tolerance, rtol=tolerance)
    rows = PagedRows([runs], [m - 1])
    one = paged_attention(q[:1], *pool, rows, scales=of)
    assert_close(one.out, want.out[:1], atol=tolerance, rtol=tolerance)
    assert_close(one.lse, want.lse[:1], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_of_another_dtype_are_read_as_theirs(dtype: torch.dtype) -> None:
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    q, k = torch.randn(4, 1, 16).to(dtype), torch.randn(4, 1, 16).to(other)
    runs, at = [Run(0, 0, 4)], torch.arange(4)
    got = attention(q, k, k, queries=runs, keys=runs)
    assert_close(got, reference_attention(q, k, k, at, at), atol=2e-2, rtol=2e-2)
