"""Merges attention states on a GPU: all pieces of a row at once, or one state into another.

Source: FlashInfer's cascade (arXiv 2501.01005), section 2.2.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sps2.kernels import check
from sps2.kernels.gpu import tiles
from sps2.kernels.state import State

LEAST: tl.constexpr = tl.constexpr(-3.4e38)
ROWS = 16
"""Rows per program that merges two states."""


def merge_many(states: Sequence[State]) -> State:
    """`sps2.kernels.merge_many`, for at least two states."""
    first, *others = states
    for name, state in ((f"states[{number}]", state) for number, state in enumerate(states)):
        check.shaped(f"{name}.out", state.out, tuple(first.out.shape))
        check.shaped(f"{name}.lse", state.lse, tuple(first.out.shape[:2]))
        check.typed(f"{name}.out", state.out, *check.FLOATING)
        check.typed(f"{name}.lse", state.lse, torch.float32)
        check.beside(f"{name}.out", state.out, first.out)
        check.beside(f"{name}.lse", state.lse, first.out)
    out, lse = first.out.float().contiguous(), first.lse.contiguous()
    made = State(torch.empty_like(out), torch.empty_like(lse))
    n, heads, dim = out.shape
    for state in others:
        if n and heads:
            more = state.out.contiguous(), state.lse.contiguous()
            with torch.cuda.device_of(out):
                _merge[triton.cdiv(n * heads, ROWS),](
                    *(out, lse, *more, *made, n * heads),
                    ROWS=ROWS,
                    DIM=dim,
                    PADDED=tiles.power(dim),
                )
        out, lse = made
    return made


def merge_into(state: State, more: State) -> State:
    """Replace a float32 state by the merge with another one, and return it."""
    for to, made in zip(state, merge_many([state, more]), strict=True):
        to.copy_(made)
    return state


def merge_pieces(pieces: State, offsets: Tensor) -> State:
    """Merge the pieces from `offsets[r]` to `offsets[r + 1]` into row r.

    Args:
        pieces: [pieces, heads, dim] float32, contiguous.
        offsets: [rows + 1] int32.
    """
    rows, (_, heads, dim) = len(offsets) - 1, pieces.out.shape
    device = pieces.out.device
    made = State(
        torch.empty(rows, heads, dim, device=device), torch.empty(rows, heads, device=device)
    )
    if rows and heads:
        with torch.cuda.device_of(pieces.out):
            _merge_pieces[rows, heads](
                *(*pieces, offsets, *made, heads), PIECES=32, DIM=dim, PADDED=tiles.power(dim)
            )
    return made


@triton.jit(do_not_specialize=["rows"])
def _merge(
    OUT, LSE, MORE, MORE_LSE, MADE, MADE_LSE, rows,
    ROWS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, PADDED)
    live = row < rows
    inside = live[:, None] & (dims < DIM)[None, :]
    place = row[:, None] * DIM + dims[None, :]
    a = tl.load(LSE + row, mask=live, other=float("-inf"))
    b = tl.load(MORE_LSE + row, mask=live, other=float("-inf"))
    top = tl.maximum(tl.maximum(a, b), LEAST)
    mine, theirs = tl.exp(a - top), tl.exp(b - top)
    whole = tl.where(mine + theirs > 0, mine + theirs, 1.0)
    out = tl.load(OUT + place, mask=inside, other=0.0) * (mine / whole)[:, None]
    more = tl.load(MORE + place, mask=inside, other=0.0).to(tl.float32) * (theirs / whole)[:, None]
    tl.store(MADE + place, out + more, mask=inside)
    lse = tl.where(mine + theirs > 0, top + tl.log(whole), float("-inf"))
    tl.store(MADE_LSE + row, lse, mask=live)


@triton.jit(do_not_specialize=["heads"])
def _merge_pieces(
    OUT, LSE, OFFSETS, MADE, MADE_LSE, heads,
    PIECES: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dims = tl.arange(0, PADDED)
    out = tl.zeros([PADDED], dtype=tl.float32)
    weight = tl.zeros([1], dtype=tl.float32)
    peak = weight + LEAST
    stop = tl.load(OFFSETS + row + 1)
    for first in range(tl.load(OFFSETS + row), stop, PIECES):
        piece = first + tl.arange(0, PIECES)
        at = piece.to(tl.int64) * heads + head
        lse = tl.load(LSE + at, mask=piece < stop, other=float("-inf"))
        inside = (piece < stop)[:, None] & (dims < DIM)[None, :]
        more = tl.load(OUT + at[:, None] * DIM + dims[None, :], mask=inside, other=0.0)
        higher = tl.maximum(peak, tl.max(lse, 0))
        shrink, shares = tl.exp(peak - higher), tl.exp(lse - higher)
        out = out * shrink + tl.sum(more * shares[:, None], 0)
        weight = weight * shrink + tl.sum(shares, 0)
        peak = higher
    whole = tl.where(weight > 0, weight, 1.0)
    at = row * heads + head
    tl.store(MADE + at * DIM + dims, out / whole, mask=dims < DIM)
    lse = tl.where(weight > 0, peak + tl.log(whole), float("-inf"))
    tl.store(MADE_LSE + at + tl.arange(0, 1), lse)
