"""Attention states: what ring, split-KV and remote attention have in common."""

from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """Tokens `start`, `start + 1`, ... of a sequence lie in rows `slot`, `slot + 1`, ..."""

    slot: int
    start: int
    tokens: int


Scales = tuple[Tensor, Tensor]
"""Of keys and of values in 8 bits: [rows, kv_heads] float32 each, as views of [kv_heads, rows]."""


class State(NamedTuple):
    """Attention over some of the keys.

    out: [tokens, heads, dim] float32, the softmax-weighted mean of the values.
    lse: [tokens, heads] float32, the natural log of the sum of exp(score).
    A row that saw no key has out 0 and lse -inf; merging it changes nothing.
    """

    out: Tensor
    lse: Tensor


def empty_state(tokens: int, heads: int, dim: int, device: torch.device | str = "cpu") -> State:
    """The neutral element of `merge`: rows that saw nothing."""
    out = torch.zeros(tokens, heads, dim, device=device)
    return State(out, torch.full((tokens, heads), -torch.inf, device=device))
