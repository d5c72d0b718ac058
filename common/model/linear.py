"""Products with weights that stay as in the file, so that processes share its memory."""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sps2.kernels.blocks import has_onednn, linear
from sps2.kernels.native import layer as native
from sps2.kernels.native.layer import Weight, Weights
from sps2.kernels.weight_forms import BESIDE, PIECE, QuantisedWeight


class Linear:
    """Linear layers that share their input."""

    def __init__(self, weights: Sequence[Weight], biases: Sequence[Tensor | None]) -> None:
        self.weights: Sequence[Weights] = tuple(zip(weights, biases, strict=True))

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """The layers' outputs, [rows, outputs] each in the dtype of x, for x: [rows, inputs]."""
        return [_product(x, weight, bias) for weight, bias in self.weights]

    def one(self, x: Tensor) -> Tensor:
        """The output of a single layer: [rows, inputs] -> [rows, outputs]."""
        return self(x)[0]

    def wide(self, x: Tensor) -> Tensor:
        """As `one`, in float32: the sums are not rounded to the dtype of x."""
        ((weight, bias),) = self.weights
        return _wide(x, weight, bias)


def embedded(ids: Tensor, weight: Weight) -> Tensor:
    """Rows of an embedding [vocab, hidden]: ids [n] int64 -> [n, hidden] float32."""
    if isinstance(weight, QuantisedWeight):
        return weight.take(ids, torch.float32)
    return F.embedding(ids, weight).float()


def _product(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """The C++ kernel computes few rows; for many, quantised weights are dequantised first."""
    if 0 < len(x) <= native.MOST_ROWS and native.serves(x.dtype, weight):
        return native.product(x, (weight, bias)).to(x.dtype)
    if x.device.type == "cpu" and not _multiplies(x.dtype):
        return _widened(x, weight, bias).to(x.dtype)
    if not isinstance(weight, QuantisedWeight):
        return _dense(x, weight, bias)
    outputs, inputs = weight.shape
    step = max(1, PIECE // (BESIDE * inputs)) * BESIDE
    if outputs <= step:
        return _dense(x, weight.restored(x.dtype), bias)
    spans = [(start, min(start + step, outputs)) for start in range(0, outputs, step)]
    parts = [_dense(x, weight.rows(*span).restored(x.dtype), None) for span in spans]
    out = torch.cat(parts, 1)
    return out if bias is None else out + bias


def _wide(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """The product in float32, by the C++ kernel where possible, a few rows at a time."""
    if x.dtype == torch.float32:
        return _product(x, weight, bias)
    if len(x) and native.serves(x.dtype, weight):
        return torch.cat([native.product(few, (weight, bias)) for few in x.split(native.MOST_ROWS)])
    return _widened(x, weight, bias)


def _widened(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """The product in float32, piece by piece, so that no large weight is copied whole."""
    outputs, inputs = weight.shape
    step = max(1, PIECE // (BESIDE * inputs)) * BESIDE
    parts = []
    for start in range(0, outputs, step):
        stop = min(start + step, outputs)
        if isinstance(weight, QuantisedWeight):
            parts.append(_widening(x, weight.rows(start, stop).restored(x.dtype)))
        else:
            parts.append(_widening(x, weight[start:stop]))
    out = torch.cat(parts, 1)
    return out if bias is None else out + bias


def _widening(x: Tensor, weight: Tensor) -> Tensor:
    """GPUs multiply narrow dtypes with float32 output, with torch 2.8 and newer."""
    if x.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    return _dense(x.float(), weight.float(), None)


@cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies numbers of `dtype` fast.

    Without AVX-512 a product of bfloat16 takes seven times as long as one of float32.
    """
    known = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    supported = getattr(torch.ops.mkldnn, known[dtype], None) if dtype in known else None
    return supported is None or bool(supported())


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product, by oneDNN in float32 on the CPU, where it is faster than torch's default."""
    wide = x.dtype == weight.dtype == torch.float32
    if wide and len(x) and weight.device.type == "cpu" and has_onednn():
        return linear(x, weight, bias)
    return F.linear(x, weight, bias)
