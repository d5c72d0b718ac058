"""Decoder layers in C++: one call from one attention to the next."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.kernels import check, native
from sps2.kernels.native import abi
from sps2.kernels.native import weights as blocks
from sps2.kernels.weight_forms import QuantisedWeight

MOST_ROWS = 16
"""With more rows, torch's matrix product is faster in general."""
MOST_PAIRED_ROWS = {"avx512_bf16": 192, "amx_bf16": sys.maxsize}
"""The same for bfloat16 where the CPU multiplies pairs, by instruction set: torch first brings the
weights into another order, which takes as long as multiplying them with 16 rows."""
INPUT_STEP = 32

Weight = Tensor | QuantisedWeight
Weights = tuple[Weight, Tensor | None]
"""Weight and bias of a linear layer: [outputs, inputs], and [outputs] or None."""


class LayerWeights(NamedTuple):
    """The weights of one decoder layer of the Llama family."""

    input_norm: Tensor
    qkv: Sequence[Weights]
    o: Weights
    mlp_norm: Tensor
    gate_up: Sequence[Weights]
    down: Weights
    q_norm: Tensor | None
    k_norm: Tensor | None

    @property
    def products(self) -> list[Weights]:
        return [*self.qkv, self.o, *self.gate_up, self.down]


def serves(dtype: torch.dtype, *weights: Weight) -> bool:
    """Whether products of activations of `dtype` with these weights are supported."""
    return native.level > 0 and all(
        blocks.serves(each.blocks, dtype)
        if isinstance(each, QuantisedWeight)
        else each.device.type == "cpu"
        and each.dtype == dtype
        and dtype in native.FLOATING
        and each.is_contiguous()
        and each.shape[-1] % INPUT_STEP == 0
        for each in weights
    )


def product(x: Tensor, weights: Weights) -> Tensor:
    """x [rows, inputs] times the weights, plus the bias: [rows, outputs] float32."""
    rows, size = x.shape
    weight, bias = weights
    out = torch.empty(rows, weight.shape[0])
    if weight.shape[1] != size:
        check.shaped("x", x, (None, weight.shape[1]))
    if not isinstance(weight, QuantisedWeight) and weight.dtype != x.dtype:
        check.typed("x", x, weight.dtype)
    if bias is not None and (bias.shape != out.shape[1:] or bias.dtype != x.dtype):
        check.shaped("bias", bias, (out.shape[1],))
        check.typed("bias", bias, x.dtype)
    x = x.contiguous()  # alive until the call was made
    call = abi.FewRows(
        type=native.TYPES[x.dtype],
        rows=rows,
        size=size,
        threads=torch.get_num_threads(),
        x=x.data_ptr(),
        product=_product(weights),
        out=out.data_ptr(),
    )
    native.invoke("sps2_product", call)
    return out


class Layers:
    """All layers of a model, with prepared calls.

    Args:
        final_norm: [hidden].
        heads, kv_heads, dim: of the attention.
    """

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        final_norm: Tensor,
        heads: int,
        kv_heads: int,
        dim: int,
        eps: float,
    ) -> None:
        self._kept = (layers, final_norm)  # the calls only have addresses
        self._shape = heads, kv_heads, dim
        self._dtype = final_norm.dtype
        shape = {
            "type": native.TYPES[final_norm.dtype],
            "hidden": len(final_norm),
            "inner": layers[0].gate_up[0][0].shape[0],
            "heads": heads,
            "kv_heads": kv_heads,
            "dim": dim,
            "eps": eps,
        }
        self._calls = [abi.Layer(**shape) for _ in range(len(layers) + 1)]
        """Fill in the weights: call i ends before the attention of layer i, the last at the end."""
        for call, layer in zip(self._calls[1:], layers, strict=True):
            call.o, call.down = _product(layer.o), _product(layer.down)
            call.gate_up = (abi.Product * 2)(*map(_product, layer.gate_up))
            call.mlp_norm = layer.mlp_norm.data_ptr()
        for call, layer in zip(self._calls, layers, strict=False):
            call.next_norm = layer.input_norm.data_ptr()
            call.qkv = (abi.Product * 3)(*map(_product, layer.qkv))
            call.q_norm, call.k_norm = _address(layer.q_norm), _address(layer.k_norm)
        self._calls[-1].next_norm = final_norm.data_ptr()
        products = [weight for layer in layers for weight, _ in layer.products]
        is_plain = not any(isinstance(weight, QuantisedWeight) for weight in products)
        most = MOST_PAIRED_ROWS.get(native.LEVELS[native.level], MOST_ROWS)
        is_paired = self._dtype == torch.bfloat16 and is_plain
        self.most_rows = most if is_paired else MOST_ROWS
        """Rows up to which this is faster than torch."""

    def queries(
        self, layer: int, x: Tensor, attended: Tensor | None, table: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute a layer's q, k and v, with q and k rotated.

        Args:
            layer: the layer whose attention comes next.
            x: [rows, hidden] float32, contiguous, the residual; it is updated in place.
            attended: [rows, heads, dim], attention output of the previous layer, if any.
            table: cosines and signed sines, [rows, 1, dim] each, contiguous.

        Returns:
            q [rows, heads, dim], k and v [rows, kv_heads, dim].
        """
        heads, kv_heads, dim = self._shape
        rows = len(x)
        q = torch.empty(rows, heads, dim, dtype=self._dtype)
        k, v = torch.empty(2, rows, kv_heads, dim, dtype=self._dtype)
        for side in table:
            if side.shape != (rows, 1, dim) or side.dtype != self._dtype:
                check.table(q, table)
            if not side.is_contiguous():
                raise ValueError("table must be contiguous")
        call = self._call(layer)
        call.cosines, call.sines = table[0].data_ptr(), table[1].data_ptr()
        call.q, call.k, call.v = q.data_ptr(), k.data_ptr(), v.data_ptr()
        self._run(call, x, attended)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """[rows, hidden] after the final norm; arguments as for `queries`."""
        normed = torch.empty(x.shape, dtype=self._dtype)
        call = self._call(-1)
        call.normed = normed.data_ptr()
        self._run(call, x, attended)
        return normed

    def _call(self, layer: int) -> abi.Layer:
        """A copy of a prepared call, for this thread."""
        return abi.Layer.from_buffer_copy(self._calls[layer])

    def _run(self, call: abi.Layer, x: Tensor, attended: Tensor | None) -> None:
        hidden = call.hidden
        if x.shape[1:] != (hidden,) or x.dtype != torch.float32 or not x.is_contiguous():
            check.shaped("x", x, (None, hidden))
            check.typed("x", x, torch.float32)
            raise ValueError("x must be contiguous")
        if attended is not None:
            heads, _, dim = self._shape
            if attended.shape != (len(x), heads, dim) or attended.dtype != self._dtype:
                check.shaped("attended", attended, (len(x), heads, dim))
                check.typed("attended", attended, self._dtype)
            attended = attended.contiguous()
        call.rows, call.threads = len(x), torch.get_num_threads()
        call.x, call.attended = x.data_ptr(), _address(attended)
        native.invoke("sps2_layer", call)


def _product(weights: Weights) -> abi.Product:
    weight, bias = weights
    if isinstance(weight, QuantisedWeight):
        number = weight.form.number
        return abi.Product(weight.blocks.data_ptr(), _address(bias), weight.outputs, number)
    return abi.Product(weight.data_ptr(), _address(bias), len(weight), 0)


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
