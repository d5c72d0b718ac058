"""Products in float32 are not rounded to what the weights are in."""

import pytest
import torch
from torch.testing import assert_close

from sps2.common.model.linear import Linear
from sps2.kernels import native
from sps2.kernels.weight_quantize import quantise


@pytest.mark.parametrize("level", range(native.level + 1), ids=native.LEVELS.__getitem__)
@pytest.mark.parametrize("rows", [0, 1, 16, 37])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, 8, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_wide_products_are_not_rounded(
    rows: int,
    kind: torch.dtype | int,
    biased: bool,
    level: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "level", level)
    monkeypatch.setattr("sps2.common.model.linear.PIECE", 64 * 16)  # several pieces
    torch.manual_seed(rows)
    dtype = kind if isinstance(kind, torch.dtype) else torch.bfloat16
    plain = torch.randn(100, 64).to(dtype)
    weight = plain if isinstance(kind, torch.dtype) else quantise(plain, 8 if kind == 8 else 4)
    exact = plain if isinstance(weight, torch.Tensor) else weight.restored(torch.float32)
    bias = torch.randn(100).to(dtype) if biased else None
    x = torch.randn(rows, 64).to(dtype)
    out = Linear([weight], [bias]).wide(x)
    assert out.dtype == torch.float32
    want = x.double() @ exact.double().t() + (0 if bias is None else bias.double())
    # restored weights are rounded once; sums of products never
    limit = 1e-4 if isinstance(kind, torch.dtype) else 0.2
    assert_close(out.double(), want, atol=limit, rtol=0)
    if rows:
        assert not torch.equal(out, out.to(torch.bfloat16).float())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, 8, 4])
def test_many_rows_are_rounded_once_where_the_cpu_has_no_such_products(
    kind: torch.dtype | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sps2.common.model.linear._multiplies", lambda dtype: False)
    monkeypatch.setattr("sps2.common.model.linear.PIECE", 64 * 16)  # several pieces
    torch.manual_seed(0)
    dtype = kind if isinstance(kind, torch.dtype) else torch.bfloat16
    plain = torch.randn(100, 64).to(dtype)
    weight = plain if isinstance(kind, torch.dtype) else quantise(plain, 8 if kind == 8 else 4)
    exact = plain if isinstance(weight, torch.Tensor) else weight.restored(dtype)
    x, bias = torch.randn(200, 64).to(dtype), torch.randn(100).to(dtype)
    out = Linear([weight], [bias]).one(x)
    assert out.dtype == dtype
    want = x.double() @ exact.double().t() + bias.double()
    assert_close(out, want.to(dtype), rtol=0.008, atol=1e-6)
    wrong = (out != want.to(dtype)).double().mean()
    assert wrong < 0.01, "but for those that lie between two numbers"
