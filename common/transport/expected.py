"""Checks dtypes and shapes of tensors from peers, before any kernel uses them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.common.errors import Internal, Invalid


class Like(NamedTuple):
    """Dtype and shape of a tensor; a size of None is any size."""

    dtype: torch.dtype
    shape: tuple[int | None, ...]


def state_like(rows: int, heads: int, dim: int, dtype: torch.dtype) -> tuple[Like, Like]:
    """An attention state: `out` in the model's dtype, log-sum-exp in float32."""
    return Like(dtype, (rows, heads, dim)), Like(torch.float32, (rows, heads))


def check(what: str, tensors: Sequence[Tensor], wanted: Sequence[Like]) -> None:
    """Raise Invalid unless the tensors have the expected dtypes and shapes."""
    came = [Like(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
    if len(came) != len(wanted) or not all(map(_is_like, came, wanted)):
        raise Invalid(f"{what} of {_said(came)} came; {_said(wanted)} is wanted")


def check_layer(layer: int, layers: int) -> None:
    """Raise Invalid unless a model of `layers` layers has this one."""
    if not 0 <= layer < layers:
        raise Invalid(f"layer {layer} came; one of {layers} is wanted")


def check_from(
    source: str, purpose: str, tensors: Sequence[Tensor], wanted: Sequence[Like]
) -> None:
    """Check the tensors of a frame from a peer that works on the same request.

    Raises:
        Internal: they are not as expected, for example since the peer has another model.
    """
    try:
        check(f"a {purpose} frame from {source}", tensors, wanted)
    except Invalid as error:
        why = "see that all shards run the same model, config and version"
        raise Internal(f"{error}; {why}") from error


def _is_like(came: Like, wanted: Like) -> bool:
    return (
        came.dtype == wanted.dtype
        and len(came.shape) == len(wanted.shape)
        and all(must in (None, size) for size, must in zip(came.shape, wanted.shape, strict=True))
    )


def _said(likes: Sequence[Like]) -> str:
    said = []
    for each in likes:
        sizes = ", ".join("any" if size is None else str(size) for size in each.shape)
        said.append(f"{str(each.dtype).removeprefix('torch.')} [{sizes}]")
    return ", ".join(said) or "nothing"
