"""Merges attention states over disjoint keys into the state over all their keys.

Associative and commutative. Source: FlashInfer's cascade (arXiv 2501.01005), section 2.2.
"""

from collections.abc import Sequence

import torch

from sps2.kernels import gpu, native
from sps2.kernels.state import State


def merge(a: State, b: State) -> State:
    """The state over the keys of both states."""
    return merge_many([a, b])


def merge_many(states: Sequence[State]) -> State:
    """As `merge`, for one or more states at once; `out` may be of any floating dtype.

    Returns:
        A new float32 state; a single state is returned itself.
    """
    first, *others = states
    if not others:
        return first
    if gpu.serves(first.out):
        from sps2.kernels.gpu import merge

        return merge.merge_many(states)
    if all(native.serves(state.out) and state.out.is_contiguous() for state in states):
        whole = State(first.out.to(torch.float32, copy=True), first.lse.contiguous().clone())
        for state in others:
            native.merge(whole, State(state.out, state.lse.contiguous()))
        return whole
    lse = torch.stack([state.lse for state in states])
    top = lse.amax(0).clamp_(min=torch.finfo(torch.float32).min)
    weights = (lse - top).exp_()
    total = weights.sum(0)
    weights /= total.clamp(min=torch.finfo(torch.float32).tiny)

    out = first.out * weights[0, ..., None]
    for weight, state in zip(weights[1:], others, strict=True):
        out.addcmul_(state.out.to(out.dtype), weight[..., None])
    return State(out, total.log_().add_(top))
