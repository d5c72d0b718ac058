"""What keys and values travel as between the ranks of a prefill group."""

import torch
from torch import Tensor

from sps2.kernels.quantize import Packed, pack_all, unpack_all

PLAIN = 2
"""Tensors of a frame whose keys and values are in the model's dtype; quantised ones have more."""


def to_wire(k: Tensor, v: Tensor, wire: str) -> tuple[Tensor, ...]:
    """The tensors that carry k and v, [tokens, kv_heads, dim] each."""
    if wire == "int8":
        return tuple(pack_all(k, v))
    return k, v


def from_wire(
    tensors: tuple[Tensor, ...], tokens: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """k and v, [tokens, kv_heads, dim] each."""
    if len(tensors) == PLAIN:
        return tensors[0], tensors[1]
    return unpack_all(Packed(*tensors), tokens, dtype)
