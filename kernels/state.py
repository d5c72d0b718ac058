"""Attention states and their merge: what ring, split-KV and remote attention have in common."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """Tokens `start`, `start + 1`, ... of a sequence lie in rows `slot`, `slot + 1`, ..."""

    slot: int
    start: int
    tokens: int


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


def merge(a: State, b: State) -> State:
    """The state over the keys of both, which must be disjoint; associative and commutative.

    Source: FlashInfer's cascade (arXiv 2501.01005), section 2.2.
    """
    return merge_many([a, b])


def merge_many(states: Sequence[State]) -> State:
    """As `merge`, for one or more states at once; `out` may be of any floating dtype."""
    first, *others = states
    if not others:
        return first
    lse = torch.stack([state.lse for state in states])
    top = lse.amax(0).clamp_(min=torch.finfo(torch.float32).min)
    weights = (lse - top).exp_()
    total = weights.sum(0)
    weights /= total.clamp(min=torch.finfo(torch.float32).tiny)

    out = first.out * weights[0, ..., None]
    for weight, state in zip(weights[1:], others, strict=True):
        out.addcmul_(state.out.to(out.dtype), weight[..., None])
    return State(out, total.log_().add_(top))
