"""How near a kernel must come to its reference."""

import torch
from torch import Tensor
from torch.testing import assert_close

from sps2.kernels import State

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def near(got: Tensor, want: Tensor, dtype: torch.dtype, size: float = 1.0) -> None:
    """Within the tolerance of the dtype, relative to what is compared or to `size`."""
    tolerance = TOLERANCE[dtype]
    assert_close(got.float(), want.float(), atol=tolerance * size, rtol=tolerance)


def near_state(got: State, want: State, dtype: torch.dtype, size: float = 1.0) -> None:
    assert got.out.dtype == got.lse.dtype == torch.float32
    near(got.out, want.out, dtype, size)
    near(got.lse, want.lse, dtype, size)
