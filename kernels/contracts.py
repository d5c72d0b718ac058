"""Argument and result types of kernels of all backends."""

from typing import Literal, NamedTuple

from torch import Tensor

BLOCK = 64
"""Tokens of a block: they share the channel scales of their keys, and CSA keeps or drops them."""

Bits = Literal[4, 8]


class Packed(NamedTuple):
    """Quantised blocks of keys and values. In 4 bits two numbers share a byte: `width` is dim / 2.

    k, v: [blocks, BLOCK, width] uint8.
    k_scale: [blocks, 2, dim] float16, lower edge and step of each channel.
    v_scale: [blocks, 2, BLOCK] float16, lower edge and step of each token.
    """

    k: Tensor
    k_scale: Tensor
    v: Tensor
    v_scale: Tensor


class Choices(NamedTuple):
    """Sampling parameters of each row; on the device of the logits.

    temperature: [rows] float32; 0 chooses the most likely token.
    min_p: [rows] float32, relative to the most likely token; 0 keeps all.
    top_k: [rows] int32; 0 keeps all.
    top_p: [rows] float32; 1 keeps all.
    draws: [rows] float64 from 0 to less than 1, which token of those that are kept.
    """

    temperature: Tensor
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor
    draws: Tensor
