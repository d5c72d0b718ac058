"""Dequantises weights in 4 and 8 bits, in C++; `layer` has products with them."""

import torch
from torch import Tensor

from sps2.kernels import check, native
from sps2.kernels.native import abi

GROUP, BESIDE, HEADER = 32, 16, 64
"""Inputs and outputs of a block, and its bytes before the codes, as in weights.inc."""


def block_bytes(bits: int) -> int:
    return HEADER + GROUP * BESIDE * bits // 8


def serves(blocks: Tensor, dtype: torch.dtype) -> bool:
    """Whether these blocks are supported, for activations of `dtype`."""
    cpu = blocks.device.type == "cpu" and blocks.is_contiguous()
    return native.level > 0 and cpu and dtype in native.FLOATING


def restore(blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Dequantise blocks of a `QuantisedWeight`: [inputs, outputs of all blocks]."""
    across, groups, size = blocks.shape
    check.typed("blocks", blocks, torch.uint8)
    if size not in (block_bytes(4), block_bytes(8)) or not blocks.is_contiguous():
        raise ValueError(f"blocks have {size} bytes, or do not lie one after the other")
    out = torch.empty(groups * GROUP, across * BESIDE, dtype=dtype)
    call = abi.Restored(
        type=native.TYPES[dtype],
        bits=4 if size == block_bytes(4) else 8,
        blocks=across,
        inputs=groups * GROUP,
        threads=torch.get_num_threads(),
        weight=blocks.data_ptr(),
        out=out.data_ptr(),
    )
    native.invoke("sps2_restore", call)
    return out
