"""Writes new keys and values into pages on a GPU, in one launch: rotates, quantises, stores.

A program processes one token: both halves of the channels of all its heads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sps2.kernels import check
from sps2.kernels.gpu import tiles
from sps2.kernels.gpu.kv_quantize import FINEST, ROUND
from sps2.kernels.gpu.rows import turn
from sps2.kernels.state import Scales


def append(
    k: Tensor,
    v: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    slots: Tensor,
    scales: Scales | None = None,
    table: tuple[Tensor, Tensor] | None = None,
) -> None:
    """`sps2.kernels.append.append`; slots are not checked to be within the pool."""
    check.shaped("k", k, (None, None, None))
    check.shaped("v", v, tuple(k.shape))
    rows, heads, dim = k.shape
    check.typed("k", k, *check.FLOATING)
    check.typed("v", v, k.dtype)
    check.beside("v", v, k)
    if dim % 2:
        raise ValueError(f"k has head dim {dim}, which is odd")
    for name, x in (("k", k), ("v", v)):
        check.dense(name, x)
    for name, pool in (("k_pool", k_pool), ("v_pool", v_pool)):
        check.shaped(name, pool, (len(k_pool), heads, dim))
        check.typed(name, pool, k.dtype if scales is None else torch.int8)
        check.beside(name, pool, k)
        check.dense(name, pool)
    for name, scale in zip(("scales[0]", "scales[1]"), scales or (), strict=False):
        check.shaped(name, scale, (len(k_pool), heads))
        check.typed(name, scale, torch.float32)
        check.beside(name, scale, k)
    check.shaped("slots", slots, (rows,))
    check.typed("slots", slots, torch.int32, torch.int64)
    check.beside("slots", slots, k)
    check.dense("slots", slots)
    check.table(k, table)
    if not k.numel():
        return
    cosines, sines = (k, k) if table is None else (side.contiguous() for side in table)
    k_scale, v_scale = (k_pool, v_pool) if scales is None else scales
    with torch.cuda.device_of(k):
        _append[rows,](
            *(k, v, cosines, sines, slots, k_pool, v_pool, k_scale, v_scale),
            *(
                stride
                for x in (k, v, k_pool, v_pool, k_scale, v_scale)
                for stride in x.stride()[:2]
            ),
            heads,
            HEADS=tiles.power(heads, 1),
            HALF=dim // 2,
            PADDED=tiles.power(dim // 2),
            TURNED=table is not None,
            SCALED=scales is not None,
        )


@triton.jit(do_not_specialize=["heads", "ks_head", "vs_head"])
def _append(
    K, V, COSINES, SINES, SLOTS, K_POOL, V_POOL, K_SCALE, V_SCALE,
    k_row, k_head, v_row, v_head, kp_row, kp_head, vp_row, vp_head,
    ks_row, ks_head, vs_row, vs_head, heads,
    HEADS: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr,
    TURNED: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(SLOTS + row).to(tl.int64)
    head, half = tl.arange(0, HEADS), tl.arange(0, PADDED)
    there = head < heads
    inside = there[:, None] & (half < HALF)[None, :]
    at = K + row * k_row + head[:, None] * k_head + half[None, :]
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    if TURNED:
        a, b = turn(a, b, COSINES + row * (2 * HALF), SINES + row * (2 * HALF), half, HALF)
        a, b = a.to(K.dtype.element_ty).to(tl.float32), b.to(K.dtype.element_ty).to(tl.float32)
    to = K_POOL + slot * kp_row + head[:, None] * kp_head + half[None, :]
    _put(a, b, to, K_SCALE + slot * ks_row + head * ks_head, there, inside, HALF, SCALED)

    at = V + row * v_row + head[:, None] * v_head + half[None, :]
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    to = V_POOL + slot * vp_row + head[:, None] * vp_head + half[None, :]
    _put(a, b, to, V_SCALE + slot * vs_row + head * vs_head, there, inside, HALF, SCALED)


@triton.jit
def _put(a, b, at, SCALE, there, inside, HALF: tl.constexpr, SCALED: tl.constexpr):
    if SCALED:
        size = tl.maximum(tl.max(tl.abs(a), 1), tl.max(tl.abs(b), 1))
        scale = tl.maximum(tl.div_rn(size, tl.full(size.shape, 127.0, tl.float32)), FINEST)
        tl.store(SCALE, scale, mask=there)
        tl.store(at, _level(a, scale), mask=inside)
        tl.store(at + HALF, _level(b, scale), mask=inside)
    else:
        tl.store(at, a, mask=inside)
        tl.store(at + HALF, b, mask=inside)


@triton.jit
def _level(x, scale):
    level = tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape)) + ROUND - ROUND
    return tl.minimum(tl.maximum(level, -127.0), 127.0).to(tl.int8)
