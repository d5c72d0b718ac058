"""Row operations are what torch computes in float32, rounded once."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sps2.kernels.rows import add_norm, rotate, swiglu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
shapes = {
    "rows": st.integers(0, 20),
    "size": st.sampled_from([8, 16, 48, 80, 256]),
    "dtype": st.sampled_from(DTYPES),
    "seed": st.integers(0, 1000),
}


@given(**shapes)
@settings(max_examples=60, deadline=None)
def test_swiglu_of_rows_that_lie_apart(rows: int, size: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    both = (torch.randn(rows, 2 * size) * 20).to(dtype)
    gate, up = both.chunk(2, -1)
    want = F.silu(gate.float()) * up.float()
    got = swiglu(gate, up).float()
    assert_close(got, want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@given(**shapes, added=st.booleans())
@settings(max_examples=60, deadline=None)
def test_add_norm_changes_the_residual(
    rows: int, size: int, dtype: torch.dtype, seed: int, added: bool
) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, size).to(dtype), torch.randn(size).to(dtype)
    plus = torch.randn(rows, size).to(dtype) if added else None
    whole = x.clone() if plus is None else x + plus
    got = add_norm(x, plus, weight, 1e-5)
    assert torch.equal(x, whole)
    want = F.rms_norm(whole.float(), (size,), weight.float(), 1e-5)
    assert_close(got.float(), want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_not_rounded_where_the_residual_is_wide(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x, weight = torch.randn(9, 48), torch.randn(48).to(dtype)
    plus = torch.randn(9, 48).to(dtype)
    whole = x + plus.float()
    got = add_norm(x, plus, weight, 1e-5)
    assert torch.equal(x, whole)
    assert got.dtype == dtype
    want = F.rms_norm(whole, (48,), weight.float(), 1e-5)
    assert_close(got.float(), want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 64, 80, 128])
def test_rotation_of_part_of_a_product(dtype: torch.dtype, dim: int) -> None:
    torch.manual_seed(dim)
    x = torch.randn(7, 5 * dim).to(dtype)[:, dim : 4 * dim].unflatten(-1, (3, dim))
    angles = torch.randn(7, 1, dim // 2).repeat(1, 1, 2)
    signs = torch.tensor([-1.0, 1.0]).repeat_interleave(dim // 2)
    cosines, sines = angles.cos().to(dtype), (angles.sin() * signs).to(dtype)
    swapped = torch.cat(x.float().chunk(2, -1)[::-1], -1)
    want = x.float() * cosines.float() + swapped * sines.float()
    got = rotate(x, (cosines, sines))
    assert got.is_contiguous()
    assert_close(got.float(), want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_far_out(dtype: torch.dtype) -> None:
    gate = torch.tensor([[-3e4, -200.0, -90.0, 0.0, 90.0, 200.0, 3e4, 1.0] * 2]).to(dtype)
    got = swiglu(gate, torch.ones_like(gate))
    assert bool(got.isfinite().all())
    assert_close(got, F.silu(gate.float()).to(dtype), atol=1e-6, rtol=1e-2)
