"""Dequantises weights in blocks, in C++; `layer` has products with them."""

from typing import Protocol

import torch
from torch import Tensor

from sps2.kernels import check, native
from sps2.kernels.native import abi

GROUP, BESIDE = 32, 16
"""Inputs and outputs whose codes lie together, as in weights.inc."""


class Form(Protocol):
    """What the kernel asks of a `weight_forms.Form`."""

    @property
    def number(self) -> int: ...
    @property
    def inputs(self) -> int: ...
    @property
    def size(self) -> int: ...


class Blocks(Protocol):
    """What the kernel asks of a `weight_forms.QuantisedWeight`."""

    @property
    def blocks(self) -> Tensor: ...
    @property
    def form(self) -> Form: ...


def serves(blocks: Tensor, dtype: torch.dtype) -> bool:
    """Whether these blocks are supported, for activations of `dtype`."""
    cpu = blocks.device.type == "cpu" and blocks.is_contiguous()
    return native.level > 0 and cpu and dtype in native.FLOATING


def restore(weight: Blocks, dtype: torch.dtype) -> Tensor:
    """Dequantise a weight: [inputs, outputs of all blocks]."""
    across, down, size = weight.blocks.shape
    form = weight.form
    check.typed("blocks", weight.blocks, torch.uint8)
    if size != form.size or not weight.blocks.is_contiguous():
        raise ValueError(f"blocks have {size} bytes, not {form.size} one after the other")
    out = torch.empty(down * form.inputs, across * BESIDE, dtype=dtype)
    call = abi.Restored(
        type=native.TYPES[dtype],
        form=form.number,
        blocks=across,
        inputs=down * form.inputs,
        threads=torch.get_num_threads(),
        weight=weight.blocks.data_ptr(),
        out=out.data_ptr(),
    )
    native.invoke("sps2_restore", call)
    return out
