"""What tensors from peers must be like, checked before any kernel is given them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.common.errors import Internal


class Like(NamedTuple):
    """Dtype and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def state_like(rows: int, heads: int, dim: int, dtype: torch.dtype) -> tuple[Like, Like]:
    """Of an attention state: `out` in the model's dtype, log-sum-exp in float32."""
    return Like(dtype, (rows, heads, dim)), Like(torch.float32, (rows, heads))


def check(source: str, purpose: str, tensors: Sequence[Tensor], wanted: Sequence[Like]) -> None:
    """See that a peer sent what is awaited.

    Raises:
        Internal: it is something else, as from a peer that has another model.
    """
    came = [Like(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
    if came != list(wanted):
        raise Internal(
            f"{source} sent a {purpose} frame of {_said(came)}, where {_said(wanted)} is awaited; "
            "see that all shards run the same model, config and version"
        )


def _said(likes: Sequence[Like]) -> str:
    said = [f"{each.dtype} {list(each.shape)}".removeprefix("torch.") for each in likes]
    return ", ".join(said) or "nothing"
