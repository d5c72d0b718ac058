"""Attention states, the basis of ring, split-KV and remote attention."""

from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """Tokens `start`, `start + 1`, ... of a sequence are in rows `slot`, `slot + 1`, ..."""

    slot: int
    start: int
    tokens: int


Scales = tuple[Tensor, Tensor]
"""Scales of int8 keys and values: [rows, kv_heads] float32 each, as views of [kv_heads, rows]."""


class State(NamedTuple):
    """The result of attention over a part of the keys.

    out: [tokens, heads, dim] float32, the softmax-weighted mean of the values.
    lse: [tokens, heads] float32, the natural log of the sum of exp(score).
    A row that saw no key has out 0 and lse -inf; merging it changes nothing.
    """

    out: Tensor
    lse: Tensor


def empty_state(tokens: int, heads: int, dim: int, device: torch.device | str = "cpu") -> State:
    """The neutral element of `merge`: rows that saw no key."""
    out = torch.zeros(tokens, heads, dim, device=device)
    return State(out, torch.full((tokens, heads), -torch.inf, device=device))
