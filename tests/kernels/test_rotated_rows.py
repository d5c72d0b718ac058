"""Rows in 4 bits come back near, whatever their size, outliers or head dim."""

import pytest
import torch
from torch.testing import assert_close

from sps2.kernels.rotated_rows import POSITIVE, quantise_rotated, restore_rotated


@pytest.mark.parametrize("dim", [8, 64, 80, 96, 128])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_rows_come_back_near(dim: int, size: float) -> None:
    x = torch.randn(500, 3, dim, generator=torch.Generator().manual_seed(dim)) * size
    packed, scale = quantise_rotated(x)
    assert (packed.shape, packed.dtype) == ((500, 3, dim // 2), torch.uint8)
    assert (scale.shape, scale.dtype) == ((500, 3), torch.uint8)
    back = restore_rotated(packed, scale, torch.float32)
    error = float((back - x).norm() / x.norm())
    assert 0.05 < error < 0.115  # of Gaussian numbers with 16 levels: 0.098


def test_outliers_are_spread() -> None:
    """Without the rotation the largest channel would be cut off at 2.7 times the row's size."""
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    x[:, 5] *= 30
    back = restore_rotated(*quantise_rotated(x), torch.float32)
    assert float((back - x).norm() / x.norm()) < 0.2
    assert float((back[:, 5] - x[:, 5]).norm() / x[:, 5].norm()) < 0.15


def test_the_table_has_the_least_error() -> None:
    """Every level is the mean of the Gaussian numbers that are rounded to it."""
    x = torch.randn(2_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    levels = torch.tensor(POSITIVE, dtype=torch.float64)
    nearest = torch.bucketize(x.abs(), (levels[1:] + levels[:-1]) / 2)
    sums = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, nearest, x.abs())
    assert_close(sums / nearest.bincount(), levels, atol=4e-3, rtol=0)


def test_zeros_and_extremes_stay_finite() -> None:
    x = torch.zeros(3, 64)
    x[1] = 1e30
    x[2] = 1e-30
    back = restore_rotated(*quantise_rotated(x), torch.bfloat16)
    assert back.dtype == torch.bfloat16
    assert back.isfinite().all()
    assert float(back[0].abs().max()) < 1e-4
