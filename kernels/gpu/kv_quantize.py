"""Packs and unpacks blocks of keys and values in 8 or 4 bits on a GPU.

A program processes both halves of the channels of a block, which in 4 bits share bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sps2.kernels import check
from sps2.kernels.contracts import BLOCK, Bits, Packed
from sps2.kernels.gpu import tiles

ROUND: tl.constexpr = tl.constexpr(12582912.0)
"""1.5 * 2^23: adding and subtracting it rounds half to even, as torch does."""
FINEST: tl.constexpr = tl.constexpr(6e-8)
"""The smallest step, which is float16's."""


def pack(k: Tensor, v: Tensor, which: Tensor, bits: Bits, roomy: bool = False) -> Packed:
    """`sps2.kernels.kv_quantize.pack`."""
    packed, ends = pack_all_on_device(k, v, which, bits)
    if roomy:
        return packed
    count = int(ends[-1]) if len(ends) else 0
    return Packed(*(x[:count] for x in packed))


def pack_all_on_device(k: Tensor, v: Tensor, which: Tensor, bits: Bits) -> tuple[Packed, Tensor]:
    """As `pack`, without waiting for the device: with room for all blocks.

    Returns:
        The packed blocks, and [kv_heads * blocks] int64: the number of blocks kept up to and
        including block b of KV head h. Memory beyond the last kept block is not set.
    """
    check.shaped("k", k, (None, None, None))
    check.shaped("v", v, tuple(k.shape))
    tokens, kv_heads, dim = k.shape
    for name, x in (("k", k), ("v", v)):
        check.typed(name, x, *check.FLOATING)
        check.beside(name, x, k)
        check.dense(name, x)
    check.typed("v", v, k.dtype)
    check.shaped("which", which, (kv_heads, -(-tokens // BLOCK)))
    check.typed("which", which, torch.bool)
    check.beside("which", which, k)
    if dim % 2:
        raise ValueError(f"k has head dim {dim}, which is odd")
    ends = which.flatten().cumsum(0)
    most, width = len(ends), dim * bits // 8
    packed = Packed(
        torch.empty(most, BLOCK, width, dtype=torch.uint8, device=k.device),
        torch.empty(most, 2, dim, dtype=torch.float16, device=k.device),
        torch.empty(most, BLOCK, width, dtype=torch.uint8, device=k.device),
        torch.empty(most, 2, BLOCK, dtype=torch.float16, device=k.device),
    )
    if most:
        with torch.cuda.device_of(k):
            _pack[most // kv_heads, kv_heads](
                *(k, v, which.contiguous(), ends, *packed),
                *(*k.stride()[:2], *v.stride()[:2], tokens),
                HALF=dim // 2,
                PADDED=tiles.power(dim // 2),
                TOKENS=BLOCK,
                BITS=bits,
            )
    return packed, ends


def unpack(packed: Packed, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`sps2.kernels.kv_quantize.unpack`."""
    count, dim, bits = checked(packed)
    device = packed.k.device
    k, v = (torch.empty(count, BLOCK, dim, dtype=dtype, device=device) for _ in range(2))
    if count:
        with torch.cuda.device_of(packed.k):
            _unpack[count,](
                *(*packed, k, v),
                HALF=dim // 2,
                PADDED=tiles.power(dim // 2),
                TOKENS=BLOCK,
                BITS=bits,
            )
    return k, v


def checked(packed: Packed) -> tuple[int, int, int]:
    """Check packed blocks; returns the number of blocks, head dim and bits."""
    k, k_scale, v, v_scale = packed
    count, dim = len(k), k_scale.shape[-1]
    fits = dim % 2 == 0 and k.shape[-1] in (dim, dim // 2)
    if not fits:
        raise ValueError(f"packed.k has {k.shape[-1]} bytes a token, not {dim} or {dim // 2}")
    check.shaped("packed.k", k, (count, BLOCK, None))
    check.shaped("packed.v", v, tuple(k.shape))
    check.shaped("packed.k_scale", k_scale, (count, 2, dim))
    check.shaped("packed.v_scale", v_scale, (count, 2, BLOCK))
    for name, x in packed._asdict().items():
        check.typed(f"packed.{name}", x, torch.float16 if "scale" in name else torch.uint8)
        check.beside(f"packed.{name}", x, k)
        if not x.is_contiguous():
            raise ValueError(f"packed.{name} must be contiguous")
    return count, dim, 8 * k.shape[-1] // dim


@triton.jit
def _levels(x, low, step, BITS: tl.constexpr):
    levels = tl.div_rn(x - low, step)
    levels = tl.minimum(tl.maximum(levels, -1.0), 256.0) + ROUND - ROUND
    return tl.minimum(tl.maximum(levels, 0.0), (1 << BITS) - 1.0).to(tl.uint8)


@triton.jit
def _edges(low, high, BITS: tl.constexpr):
    """Lower edge and step, rounded to float16, as float32."""
    low = low.to(tl.float16).to(tl.float32)
    step = tl.maximum(tl.div_rn(high - low, (1 << BITS) - 1.0), FINEST)
    return low, step.to(tl.float16).to(tl.float32)


@triton.jit(do_not_specialize=["tokens"])
def _pack(
    K, V, WHICH, ENDS, KEYS, K_SCALE, VALUES, V_SCALE,
    k_row, k_head, v_row, v_head, tokens,
    HALF: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    entry = head * tl.num_programs(0) + block
    if tl.load(WHICH + entry) != 0:
        to = tl.load(ENDS + entry) - 1
        token = tl.arange(0, TOKENS)
        half = tl.arange(0, PADDED)
        there = (half < HALF)[None, :]
        row = tl.minimum(block * TOKENS + token, tokens - 1).to(tl.int64)[:, None]
        width: tl.constexpr = HALF * BITS // 4
        place = to * (TOKENS * width) + token[:, None] * width + half[None, :]
        edge = to * (4 * HALF) + half

        at = K + head * k_head + row * k_row + half[None, :]
        a = tl.load(at, mask=there, other=0.0).to(tl.float32)
        b = tl.load(at + HALF, mask=there, other=0.0).to(tl.float32)
        low, step = _edges(tl.min(a, 0), tl.max(a, 0), BITS)
        a = _levels(a, low[None, :], step[None, :], BITS)
        tl.store(K_SCALE + edge, low, mask=half < HALF)
        tl.store(K_SCALE + edge + 2 * HALF, step, mask=half < HALF)
        low, step = _edges(tl.min(b, 0), tl.max(b, 0), BITS)
        b = _levels(b, low[None, :], step[None, :], BITS)
        tl.store(K_SCALE + edge + HALF, low, mask=half < HALF)
        tl.store(K_SCALE + edge + 3 * HALF, step, mask=half < HALF)
        _put(KEYS + place, a, b, there, HALF, BITS)

        at = V + head * v_head + row * v_row + half[None, :]
        a = tl.load(at, mask=there, other=0.0).to(tl.float32)
        b = tl.load(at + HALF, mask=there, other=0.0).to(tl.float32)
        least = tl.where(there, tl.minimum(a, b), float("inf"))
        most = tl.where(there, tl.maximum(a, b), float("-inf"))
        low, step = _edges(tl.min(least, 1), tl.max(most, 1), BITS)
        a = _levels(a, low[:, None], step[:, None], BITS)
        b = _levels(b, low[:, None], step[:, None], BITS)
        tl.store(V_SCALE + to * (2 * TOKENS) + token, low)
        tl.store(V_SCALE + to * (2 * TOKENS) + TOKENS + token, step)
        _put(VALUES + place, a, b, there, HALF, BITS)


@triton.jit
def _put(at, a, b, there, HALF: tl.constexpr, BITS: tl.constexpr):
    if BITS == 4:
        tl.store(at, a | (b << 4), mask=there)
    else:
        tl.store(at, a, mask=there)
        tl.store(at + HALF, b, mask=there)


@triton.jit
def halves(at, there, HALF: tl.constexpr, BITS: tl.constexpr):
    """The levels of both halves of the channels, as float32."""
    if BITS == 4:
        both = tl.load(at, mask=there, other=0)
        a, b = both & 15, both >> 4
    else:
        a = tl.load(at, mask=there, other=0)
        b = tl.load(at + HALF, mask=there, other=0)
    return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def _unpack(
    KEYS, K_SCALE, VALUES, V_SCALE, K, V,
    HALF: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, TOKENS)
    half = tl.arange(0, PADDED)
    there = (half < HALF)[None, :]
    width: tl.constexpr = HALF * BITS // 4
    place = block * (TOKENS * width) + token[:, None] * width + half[None, :]
    to = block * (TOKENS * 2 * HALF) + token[:, None] * (2 * HALF) + half[None, :]

    a, b = halves(KEYS + place, there, HALF, BITS)
    edge = K_SCALE + block * (4 * HALF) + half
    low = tl.load(edge, mask=half < HALF, other=0.0).to(tl.float32)
    step = tl.load(edge + 2 * HALF, mask=half < HALF, other=0.0).to(tl.float32)
    tl.store(K + to, low[None, :] + a * step[None, :], mask=there)
    low = tl.load(edge + HALF, mask=half < HALF, other=0.0).to(tl.float32)
    step = tl.load(edge + 3 * HALF, mask=half < HALF, other=0.0).to(tl.float32)
    tl.store(K + to + HALF, low[None, :] + b * step[None, :], mask=there)

    a, b = halves(VALUES + place, there, HALF, BITS)
    low = tl.load(V_SCALE + block * (2 * TOKENS) + token).to(tl.float32)
    step = tl.load(V_SCALE + block * (2 * TOKENS) + TOKENS + token).to(tl.float32)
    tl.store(V + to, low[:, None] + a * step[:, None], mask=there)
    tl.store(V + to + HALF, low[:, None] + b * step[:, None], mask=there)
