"""The operations of a decoder layer on rows of activations, between matrix products."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sps2.kernels import gpu
from sps2.kernels.native import rows as native


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both [rows, size]. Source: arXiv 2002.05202."""
    if gpu.serves(gate):
        from sps2.kernels.gpu import rows

        return rows.swiglu(gate, up)
    if native.serves(gate.shape[-1], gate, up):
        return native.swiglu(gate, up)
    return F.silu(gate).mul_(up)


def add_norm(x: Tensor, plus: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm (arXiv 1910.07467) of x + plus; x becomes x + plus.

    Args:
        x: [rows, size], with its own memory; updated in place unless `plus` is None. In the dtype
            of `weight`, or in float32, so that sums are not rounded.
        plus: as x, in the dtype of `weight`.
        weight: [size].

    Returns:
        [rows, size], in the dtype of `weight`.
    """
    if gpu.serves(x):
        from sps2.kernels.gpu import rows

        return rows.add_norm(x, plus, weight, eps)
    if native.serves(x.shape[-1], x, weight):
        return native.add_norm(x, plus, weight, eps)
    if plus is not None:
        x += plus
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    normed: Tensor = (x * scale).to(weight.dtype).mul_(weight)
    return normed


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of x [rows, heads, dim].

    Args:
        table: cosines, and sines that are negative in the first half, [rows, 1, dim] each.
    """
    if gpu.serves(x):
        from sps2.kernels.gpu import rows

        return rows.rotate(x, table)
    cosines, signed_sines = table
    dim = x.shape[-1]
    apart = x.stride(1) == dim or x.shape[1] == 1
    if apart and native.serves(dim // 2, x) and native.serves(dim, cosines, signed_sines):
        return native.rotate(x, cosines.contiguous(), signed_sines.contiguous())
    return torch.addcmul(x * cosines, x.roll(dim // 2, -1), signed_sines)
