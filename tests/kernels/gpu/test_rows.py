"""Row operations on a GPU are what torch computes in float32, rounded once."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.kernels.gpu.rows import add_norm, rotate, swiglu

from .close import DTYPES, near

shapes = {
    "rows": st.integers(0, 9),
    "size": st.sampled_from([8, 48, 80, 256, 1100]),
    "dtype": st.sampled_from(DTYPES),
    "seed": st.integers(0, 1000),
}


@given(**shapes)
@settings(max_examples=20, deadline=None)
def test_swiglu_of_rows_that_lie_apart(rows: int, size: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    gate, up = (torch.randn(rows, 2 * size) * 20).to(dtype).chunk(2, -1)
    got = swiglu(gate, up)
    assert got.dtype == dtype
    near(got, F.silu(gate.float()) * up.float(), dtype)


@given(**shapes, added=st.booleans())
@settings(max_examples=20, deadline=None)
def test_add_norm_changes_the_residual(
    rows: int, size: int, dtype: torch.dtype, seed: int, added: bool
) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, size).to(dtype), torch.randn(size).to(dtype)
    plus = torch.randn(rows, size).to(dtype) if added else None
    whole = x.clone() if plus is None else x + plus
    got = add_norm(x, plus, weight, 1e-5)
    if dtype == torch.bfloat16:  # which the interpreter cuts off instead of rounding
        near(x, whole, dtype)
    else:
        assert torch.equal(x, whole)
    near(got, F.rms_norm(x.float(), (size,), weight.float(), 1e-5), dtype)


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
    near(got, want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 64, 80, 128])
def test_rotation_of_part_of_a_product(dtype: torch.dtype, dim: int) -> None:
    torch.manual_seed(dim)
    x = torch.randn(7, 5 * dim).to(dtype)[:, dim : 4 * dim].unflatten(-1, (3, dim))
    angles = torch.randn(7, 1, dim // 2).repeat(1, 1, 2)
    signs = torch.tensor([-1.0, 1.0]).repeat_interleave(dim // 2)
    cosines, sines = angles.cos().to(dtype), (angles.sin() * signs).to(dtype)
    swapped = torch.cat(x.float().chunk(2, -1)[::-1], -1)
    got = rotate(x, (cosines, sines))
    assert got.is_contiguous()
    near(got, x.float() * cosines.float() + swapped * sines.float(), dtype)


def test_gates_far_out() -> None:
    gate = torch.tensor([[-3e4, -200.0, -90.0, 0.0, 90.0, 200.0, 3e4, 1.0]])
    near(swiglu(gate, torch.ones_like(gate)), F.silu(gate), gate.dtype)


def test_bad_input_is_named() -> None:
    x, weight = torch.zeros(3, 8), torch.zeros(8)
    with pytest.raises(ValueError, match="up has shape"):
        swiglu(x, x[:2])
    with pytest.raises(ValueError, match="up must be contiguous"):
        swiglu(x, x.T.contiguous().T)
    with pytest.raises(ValueError, match="plus is bfloat16"):
        add_norm(x, x.bfloat16(), weight, 1e-5)
    with pytest.raises(ValueError, match="weight has shape"):
        add_norm(x, None, weight[:7], 1e-5)
    with pytest.raises(ValueError, match=r"table\[1\] has shape"):
        rotate(x[:, None], (x[:, None], x[:2, None]))
