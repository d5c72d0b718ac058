"""Products with weights, which stay as they lie in the checkpoint: processes share its pages."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sps2.kernels.native import layer as native

Weights = tuple[Tensor, Tensor | None]
"""[outputs, inputs], and a bias [outputs] or None."""


class Linear:
    """Linear layers that share their input."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        self.weights: Sequence[Weights] = tuple(zip(weights, biases, strict=True))

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """The outputs for x: [rows, inputs], [rows, outputs] each, in the dtype of x."""
        return [_product(x, weight, bias) for weight, bias in self.weights]

    def one(self, x: Tensor) -> Tensor:
        """The output, where there is one."""
        return self(x)[0]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A few rows by the C++ kernel; in float32 oneDNN's product beats torch's default."""
    if 0 < len(x) <= native.MOST_ROWS and x.dtype == weight.dtype and native.serves(weight):
        return native.product(x, (weight, bias)).to(x.dtype)
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
