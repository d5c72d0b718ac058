"""Products with weights: as they lie in the checkpoint, or packed for a few rows at a time."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """Linear layers that share their input.

    Packed, they are one product in oneDNN's own layout: for the few rows of a decode batch it is
    more than twice as fast, at the price of a private copy. Unpacked, the weights are used where
    they are, and processes that map the same file share them.

    Args:
        weights: [out, in] each.
        biases: [out] or None, for each weight.
        packed: pack if this build of torch and the dtype allow it.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], packed: bool
    ) -> None:
        self._sizes = [len(weight) for weight in weights]
        self._packed: Tensor | None = None
        self._pairs = list(zip(weights, biases, strict=True))
        if packed and _packs(weights[0]):
            whole = torch.cat(list(weights)) if len(weights) > 1 else weights[0]
            self._packed = torch.ops.mkldnn._reorder_linear_weight(whole)
            present = [bias for bias in biases if bias is not None]
            self._bias = torch.cat(present) if present else None
            self._pairs = []

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """The outputs for x: [rows, in], [rows, out] each; rows may lie apart in memory."""
        if self._packed is None:
            return [_product(x, weight, bias) for weight, bias in self._pairs]
        y = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        outputs: Sequence[Tensor] = y.split(self._sizes, -1)
        return outputs

    def one(self, x: Tensor) -> Tensor:
        """The output, where there is one."""
        return self(x)[0]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In float32 oneDNN's product, which torch has under another name, beats the default."""
    if x.dtype == torch.float32 and len(x) and _packs(weight):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


def _packs(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
