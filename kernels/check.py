"""Checks of the arguments of kernels. All raise ValueError, which names the argument.

Messages are built only for errors, since these checks run for every layer of every step.
"""

from collections.abc import Hashable

import torch
from torch import Tensor

from sps2.kernels.state import Scales, State

FLOATING = (torch.float32, torch.bfloat16, torch.float16)
DIM_STEP, MOST_DIM = 8, 256


def form(x: Tensor) -> Hashable:
    """All of a tensor that the checks look at: what has passed once in this form passes again."""
    return x.shape, x.stride(), x.dtype, x.device


def shaped(name: str, x: Tensor, shape: tuple[int | None, ...]) -> None:
    """Check that `x` has a shape; None is any length."""
    fits = x.dim() == len(shape) and all(
        want is None or got == want for got, want in zip(x.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} has shape {list(x.shape)}, not [{wanted}]")


def typed(name: str, x: Tensor, *dtypes: torch.dtype) -> None:
    """Check that `x` has one of the dtypes."""
    if x.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} is {str(x.dtype).removeprefix('torch.')}, not {names}")


def beside(name: str, x: Tensor, other: Tensor) -> None:
    """Check that `x` is on the device of `other`."""
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device}, not on {other.device}")


def dense(name: str, x: Tensor) -> None:
    """Check that `x` is contiguous along its last axis."""
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{name} must be contiguous along its last axis")


def queries(q: Tensor, scale: float) -> None:
    """Check that `q` is [n, heads, dim] as the attention kernels support it, and the scale."""
    shaped("q", q, (None, None, None))
    typed("q", q, *FLOATING)
    dense("q", q)
    dim = q.shape[2]
    fits = 0 < dim <= MOST_DIM and dim % DIM_STEP == 0
    if not fits:
        raise ValueError(f"q has head dim {dim}, not a multiple of {DIM_STEP} up to {MOST_DIM}")
    if not scale > 0:
        raise ValueError(f"scale is {scale}, not above 0")


def keys(q: Tensor, k: Tensor, v: Tensor, scales: Scales | None) -> None:
    """Check that `k` and `v` are [rows, kv_heads, dim] in the dtype of `q`, or int8 with scales."""
    shaped("k", k, (None, None, q.shape[2]))
    shaped("v", v, tuple(k.shape))
    kv_heads = k.shape[1]
    divides = kv_heads > 0 and q.shape[1] % kv_heads == 0
    if not divides:
        raise ValueError(f"k has {kv_heads} heads, which do not divide the {q.shape[1]} of q")
    for name, x in (("k", k), ("v", v)):
        typed(name, x, q.dtype if scales is None else torch.int8)
        beside(name, x, q)
        dense(name, x)
    for name, x in zip(("scales[0]", "scales[1]"), scales or (), strict=False):
        shaped(name, x, tuple(k.shape[:2]))
        typed(name, x, torch.float32)
        beside(name, x, q)


def state(q: Tensor, given: State) -> None:
    """Check that `given` is a float32 state of the rows of `q`."""
    shaped("state.out", given.out, tuple(q.shape))
    shaped("state.lse", given.lse, tuple(q.shape[:2]))
    for name, x in zip(("state.out", "state.lse"), given, strict=True):
        typed(name, x, torch.float32)
        beside(name, x, q)
    dense("state.out", given.out)


def table(x: Tensor, sides: tuple[Tensor, Tensor] | None) -> None:
    """Check that `sides` can rotate the rows of `x`: [rows, 1, dim] each, in its dtype."""
    for name, side in zip(("table[0]", "table[1]"), sides or (), strict=False):
        shaped(name, side, (len(x), 1, x.shape[2]))
        typed(name, side, x.dtype)
        beside(name, side, x)


def window(size: int | None) -> None:
    """Check that a window has at least one key."""
    if size is not None and size <= 0:
        raise ValueError(f"window is {size}, not above 0")
