"""What the checks of the GPU kernels have in common: inputs, definitions, errors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sps2.kernels import Scales, State
from sps2.kernels.kv_quantize import quantise_rows, restore_rows
from sps2.kernels.reference import reference_attention

Check = tuple[str, float, float]
"""What, its error relative to the whole, and the limit."""
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
HEADS, KV_HEADS = 8, 2

Shapes = Sequence[tuple[int, torch.dtype]]
"""Head dims and dtypes."""
USUAL: Shapes = [(128, torch.bfloat16), (64, torch.bfloat16)]
OTHERS: Shapes = [
    (dim, dtype)
    for dim in (128, 64, 80, 96, 256)
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    if (dim, dtype) not in USUAL
]


def error_of(got: Tensor, want: Tensor) -> float:
    """Relative, by norms; infinite where they differ in what is infinite, or got NaN."""
    got, want = got.cpu().double(), want.cpu().double()
    if not torch.equal(got.isfinite(), want.isfinite()):
        return float("inf")
    difference = (got - want).nan_to_num(0, 0, 0).norm()
    return float(difference / want.nan_to_num(0, 0, 0).norm().clamp(min=1e-6))


def of_state(got: State, want: State) -> float:
    return max(error_of(got.out, want.out), error_of(got.lse, want.lse))


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensors(
    n: int, m: int, dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """k and v end in rows that nobody may read."""
    q = torch.randn(n, HEADS, dim).to(dtype)
    pool = torch.randn(2, KV_HEADS, m + 100, dim).to(dtype)
    pool[:, :, m:] = torch.nan
    k, v = pool.to(device).transpose(1, 2)
    return q.to(device), k, v


def definition(
    q: Tensor, k: Tensor, v: Tensor, at: Tensor, places: Tensor, window: int | None = None
) -> State:
    return reference_attention(q.cpu(), k.cpu(), v.cpu(), at, places, window=window)


def eight_bits(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Scales, tuple[Tensor, Tensor]]:
    (k, k_scale), (v, v_scale) = (quantise_rows(x, torch.float32) for x in (k, v))
    whole = restore_rows(k, k_scale, torch.float32), restore_rows(v, v_scale, torch.float32)
    by_head = k_scale.T.contiguous().T, v_scale.T.contiguous().T
    return k, v, by_head, whole
