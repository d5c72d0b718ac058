"""Types that a kernel takes or returns, whichever backend it has."""

from typing import Literal, NamedTuple

from torch import Tensor

BLOCK = 64
"""Tokens that share the channel scales of their keys; what CSA keeps or drops."""

Bits = Literal[4, 8]


class Packed(NamedTuple):
    """Blocks of keys and values; in 4 bits two numbers share a byte, and `width` is dim / 2.

    k, v: [blocks, BLOCK, width] uint8.
    k_scale: [blocks, 2, dim] float16, lower edge and step of a channel.
    v_scale: [blocks, 2, BLOCK] float16, of a token.
    """

    k: Tensor
    k_scale: Tensor
    v: Tensor
    v_scale: Tensor


class Choices(NamedTuple):
    """How the token of each row is chosen; on the device of the logits.

    temperature: [rows] float32; 0 takes the most likely token.
    min_p: [rows] float32, relative to the most likely token; 0 keeps all.
    top_k: [rows] int32; 0 keeps all.
    top_p: [rows] float32; 1 keeps all.
    seeds: [rows] int64, of the request and the token's number.
    """

    temperature: Tensor
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor
    seeds: Tensor
