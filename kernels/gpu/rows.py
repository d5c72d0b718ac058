"""The operations between matrix products, on a GPU: one pass each, in float32, rounded once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sps2.kernels import check
from sps2.kernels.gpu import tiles

GATED = 1024
"""Numbers of a row per program."""
LONGEST = 65536
"""The longest row of one program."""


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`sps2.kernels.rows.swiglu`."""
    check.shaped("gate", gate, (None, None))
    check.shaped("up", up, tuple(gate.shape))
    check.typed("gate", gate, *check.FLOATING)
    check.typed("up", up, gate.dtype)
    check.beside("up", up, gate)
    check.dense("gate", gate)
    check.dense("up", up)
    rows, size = gate.shape
    made = torch.empty(rows, size, dtype=gate.dtype, device=gate.device)
    if made.numel():
        with torch.cuda.device_of(gate):
            _swiglu[rows, triton.cdiv(size, GATED)](
                *(gate, up, made, gate.stride(0), up.stride(0), size), SIZE=GATED
            )
    return made


def add_norm(x: Tensor, plus: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """`sps2.kernels.rows.add_norm`."""
    check.shaped("x", x, (None, None))
    rows, size = x.shape
    check.typed("weight", weight, *check.FLOATING)
    check.typed("x", x, weight.dtype, torch.float32)
    check.dense("x", x)
    if size > LONGEST:
        raise ValueError(f"x has rows of {size}, more than {LONGEST}")
    check.shaped("weight", weight, (size,))
    check.beside("weight", weight, x)
    check.dense("weight", weight)
    if plus is not None:
        check.shaped("plus", plus, (rows, size))
        check.typed("plus", plus, weight.dtype)
        check.beside("plus", plus, x)
        check.dense("plus", plus)
    made = torch.empty(rows, size, dtype=weight.dtype, device=x.device)
    if made.numel():
        other = x if plus is None else plus
        block = tiles.power(size)
        with torch.cuda.device_of(x):
            _add_norm[rows,](
                *(x, other, weight, made, x.stride(0), other.stride(0), size, eps),
                ADDED=plus is not None,
                SIZE=block,
                num_warps=min(16, max(1, block // 512)),
            )
    return made


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """`sps2.kernels.rows.rotate`."""
    check.shaped("x", x, (None, None, None))
    rows, heads, dim = x.shape
    check.typed("x", x, *check.FLOATING)
    check.dense("x", x)
    if dim % 2:
        raise ValueError(f"x has head dim {dim}, which is odd")
    check.table(x, table)
    cosines, sines = (side.contiguous() for side in table)
    made = torch.empty(rows, heads, dim, dtype=x.dtype, device=x.device)
    if made.numel():
        with torch.cuda.device_of(x):
            _rotate[rows,](
                *(x, cosines, sines, made, *x.stride()[:2], heads),
                HEADS=tiles.power(heads, 1),
                HALF=dim // 2,
                PADDED=tiles.power(dim // 2),
            )
    return made


@triton.jit
def _swiglu(GATE, UP, MADE, gate_row, up_row, size, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    gate = tl.load(GATE + row * gate_row + at, mask=at < size, other=0.0).to(tl.float32)
    up = tl.load(UP + row * up_row + at, mask=at < size, other=0.0).to(tl.float32)
    share = tl.sigmoid(tl.maximum(gate, -88.0))  # beyond that exp is infinite
    tl.store(MADE + row * size + at, gate * share * up, mask=at < size)


@triton.jit
def _add_norm(
    X, PLUS, WEIGHT, MADE, x_row, plus_row, size, eps, ADDED: tl.constexpr, SIZE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    x = tl.load(X + row * x_row + at, mask=at < size, other=0.0).to(tl.float32)
    if ADDED:
        plus = tl.load(PLUS + row * plus_row + at, mask=at < size, other=0.0).to(tl.float32)
        whole = (x + plus).to(X.dtype.element_ty)
        tl.store(X + row * x_row + at, whole, mask=at < size)
        x = whole.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / size + eps)
    weight = tl.load(WEIGHT + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(MADE + row * size + at, x * scale * weight, mask=at < size)


@triton.jit
def _rotate(
    X, COSINES, SINES, MADE, x_row, x_head, heads,
    HEADS: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head, half = tl.arange(0, HEADS), tl.arange(0, PADDED)
    inside = (head < heads)[:, None] & (half < HALF)[None, :]
    at = X + row * x_row + head[:, None] * x_head + half[None, :]
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    a, b = turn(a, b, COSINES + row * (2 * HALF), SINES + row * (2 * HALF), half, HALF)
    to = MADE + row * heads * (2 * HALF) + head[:, None] * (2 * HALF) + half[None, :]
    tl.store(to, a, mask=inside)
    tl.store(to + HALF, b, mask=inside)


@triton.jit
def turn(a, b, COSINES, SINES, half, HALF: tl.constexpr):
    """Rotary embedding of both halves of the channels of a row's heads."""
    there = half < HALF
    cosine_a = tl.load(COSINES + half, mask=there, other=0.0).to(tl.float32)[None, :]
    cosine_b = tl.load(COSINES + HALF + half, mask=there, other=0.0).to(tl.float32)[None, :]
    sine_a = tl.load(SINES + half, mask=there, other=0.0).to(tl.float32)[None, :]
    sine_b = tl.load(SINES + HALF + half, mask=there, other=0.0).to(tl.float32)[None, :]
    return a * cosine_a + b * sine_a, b * cosine_b + a * sine_b
