"""Products with weights, which stay as they lie in the file: processes share its pages."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sps2.kernels.native import layer as native
from sps2.kernels.native.layer import Weight, Weights
from sps2.kernels.weights import BESIDE, QuantisedWeight

PIECE = 1 << 22
"""Quantised weights that are made numbers at a time, at most."""


class Linear:
    """Linear layers that share their input."""

    def __init__(self, weights: Sequence[Weight], biases: Sequence[Tensor | None]) -> None:
        self.weights: Sequence[Weights] = tuple(zip(weights, biases, strict=True))

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """The outputs for x: [rows, inputs], [rows, outputs] each, in the dtype of x."""
        return [_product(x, weight, bias) for weight, bias in self.weights]

    def one(self, x: Tensor) -> Tensor:
        """The output, where there is one."""
        return self(x)[0]


def _product(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """A few rows by the C++ kernel; for many, quantised weights become numbers first."""
    if 0 < len(x) <= native.MOST_ROWS and native.serves(x.dtype, weight):
        return native.product(x, (weight, bias)).to(x.dtype)
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


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In float32 oneDNN's product beats torch's default."""
    if x.dtype == torch.float32 and len(x) and _has_onednn(weight):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


def _has_onednn(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
