"""Encodes keys and values for transfer between the ranks of a prefill group."""

import torch
from torch import Tensor

from sps2.common.transport.expected import Like
from sps2.kernels.contracts import BLOCK, Packed
from sps2.kernels.kv_quantize import pack_all, unpack_all

PLAIN = 2
"""Tensors of a frame with keys and values in the model's dtype; a quantised one has more."""


def to_wire(k: Tensor, v: Tensor, kv_transfer_dtype: str) -> tuple[Tensor, ...]:
    """The tensors that carry k and v, [tokens, kv_heads, dim] each."""
    if kv_transfer_dtype == "int8":
        return tuple(pack_all(k, v))
    return k, v


def wire_like(
    tokens: int, kv_heads: int, dim: int, dtype: torch.dtype, kv_transfer_dtype: str
) -> tuple[Like, ...]:
    """Shapes and dtypes that `to_wire` returns for k and v, [tokens, kv_heads, dim] each."""
    if kv_transfer_dtype == "int8":
        return packed_like(kv_heads * -(-tokens // BLOCK), dim)
    return (Like(dtype, (tokens, kv_heads, dim)),) * 2


def packed_like(blocks: int, dim: int) -> tuple[Like, ...]:
    """Shapes and dtypes of `blocks` blocks in 8 bits; see `kernels.contracts.Packed`."""
    numbers = Like(torch.uint8, (blocks, BLOCK, dim))
    k_scale = Like(torch.float16, (blocks, 2, dim))
    return numbers, k_scale, numbers, Like(torch.float16, (blocks, 2, BLOCK))


def from_wire(
    tensors: tuple[Tensor, ...], tokens: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Decode k and v, [tokens, kv_heads, dim] each."""
    if len(tensors) == PLAIN:
        return tensors[0], tensors[1]
    return unpack_all(Packed(*tensors), tokens, dtype)
