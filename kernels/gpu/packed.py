"""Attention on a GPU to packed blocks, which are unpacked tile by tile, never in memory.

CSA's consumer uses it for keys that all its queries see; each KV head has other blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sps2.kernels import check
from sps2.kernels.contracts import BLOCK, Packed
from sps2.kernels.gpu import tiles
from sps2.kernels.gpu.kv_quantize import checked, halves
from sps2.kernels.gpu.softmax import LOG2E, finish, product, weigh
from sps2.kernels.state import State


def attend(
    q: Tensor, packed: Packed, offsets: Tensor, scale: float, state: State | None = None
) -> State:
    """Attention of every query to all tokens of the blocks of its KV head.

    Args:
        q: [n, heads, dim].
        packed: blocks, KV head by KV head.
        offsets: [kv_heads + 1] int32 or int64 on the device: the first block of each KV head, and
            the number of blocks, which may be less than `packed` has room for.
        state: of the same queries over other keys; it is updated in place, and returned.
    """
    check.queries(q, scale)
    n, heads, dim = q.shape
    _, packed_dim, bits = checked(packed)
    if packed_dim != dim:
        raise ValueError(f"packed has head dim {packed_dim}, q {dim}")
    check.beside("packed", packed.k, q)
    check.shaped("offsets", offsets, (None,))
    check.typed("offsets", offsets, torch.int32, torch.int64)
    check.beside("offsets", offsets, q)
    kv_heads = len(offsets) - 1
    divides = kv_heads > 0 and heads % kv_heads == 0
    if not divides:
        raise ValueError(f"offsets has {kv_heads} KV heads, which do not divide {heads}")
    if state is not None:
        check.state(q, state)
    onto = state or State(
        torch.empty(n, heads, dim, device=q.device), torch.empty(n, heads, device=q.device)
    )
    if not n:
        return onto

    tile = tile_of(q)

    def launch(tile: tiles.Tile) -> None:
        _packed[triton.cdiv(n, tile.rows), heads](
            *(q, *packed, offsets, *onto),
            *(*q.stride()[:2], *onto.out.stride()[:2], *onto.lse.stride()),
            *(n, scale, int(state is not None)),
            GROUP=heads // kv_heads,
            HALF=dim // 2,
            PADDED=tiles.power(dim // 2),
            ROWS=tile.rows,
            TOKENS=BLOCK,
            BITS=bits,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    with torch.cuda.device_of(q):
        tiles.launch(("packed", dim, q.dtype, bits), tile, launch)
    return onto


def tile_of(q: Tensor) -> tiles.Tile:
    """The tile for these queries."""
    return tiles.prefill(q.shape[2], q.dtype, q.device, len(q))


@triton.jit(do_not_specialize=["LSE", "n", "more", "lse_row", "lse_head"])
def _packed(
    Q, KEYS, K_SCALE, VALUES, V_SCALE, OFFSETS, OUT, LSE,
    q_row, q_head, out_row, out_head, lse_row, lse_head,
    n, scale, more,
    GROUP: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    kv_head = head // GROUP
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < n
    far = row.to(tl.int64)
    half = tl.arange(0, PADDED)
    token = tl.arange(0, TOKENS)
    inside = live[:, None] & (half < HALF)[None, :]
    q_at = Q + head * q_head + far[:, None] * q_row + half[None, :]
    q_a = tl.load(q_at, mask=inside, other=0.0)
    q_b = tl.load(q_at + HALF, mask=inside, other=0.0)

    into = OUT + head * out_head + far[:, None] * out_row + half[None, :]
    lse_at = LSE + head * lse_head + far * lse_row
    known = row < n * more
    again = known[:, None] & (half < HALF)[None, :]
    out_a = tl.load(into, mask=again, other=0.0)
    out_b = tl.load(into + HALF, mask=again, other=0.0)
    peak = tl.load(lse_at, mask=known, other=float("-inf")) * LOG2E
    weight = tl.where(peak > float("-inf"), 1.0, 0.0)

    width: tl.constexpr = HALF * BITS // 4
    first = tl.load(OFFSETS + kv_head).to(tl.int32)
    stop = tl.load(OFFSETS + kv_head + 1).to(tl.int32)
    for block in range(first, stop):
        base = tl.cast(block, tl.int64)
        k_at = KEYS + base * (TOKENS * width) + token[None, :] * width + half[:, None]
        a, b = halves(k_at, (half < HALF)[:, None], HALF, BITS)
        edge = K_SCALE + base * (4 * HALF) + half
        low_a = tl.load(edge, mask=half < HALF, other=0.0).to(tl.float32)
        low_b = tl.load(edge + HALF, mask=half < HALF, other=0.0).to(tl.float32)
        step_a = tl.load(edge + 2 * HALF, mask=half < HALF, other=0.0).to(tl.float32)
        step_b = tl.load(edge + 3 * HALF, mask=half < HALF, other=0.0).to(tl.float32)
        a = (low_a[:, None] + a * step_a[:, None]).to(q_a.dtype)
        b = (low_b[:, None] + b * step_b[:, None]).to(q_a.dtype)
        scores = product(q_a, a, tl.zeros([ROWS, TOKENS], dtype=tl.float32))
        scores = product(q_b, b, scores)

        shares, peak, weight, shrink = weigh(scores, scale * LOG2E, peak, weight, False)
        v_at = VALUES + base * (TOKENS * width) + token[:, None] * width + half[None, :]
        a, b = halves(v_at, (half < HALF)[None, :], HALF, BITS)
        low = tl.load(V_SCALE + base * (2 * TOKENS) + token).to(tl.float32)[:, None]
        step = tl.load(V_SCALE + base * (2 * TOKENS) + TOKENS + token).to(tl.float32)[:, None]
        shares = shares.to(q_a.dtype)
        out_a = product(shares, (low + a * step).to(q_a.dtype), out_a * shrink[:, None])
        out_b = product(shares, (low + b * step).to(q_a.dtype), out_b * shrink[:, None])

    whole, lse = finish(peak, weight)
    tl.store(into, out_a / whole[:, None], mask=inside)
    tl.store(into + HALF, out_b / whole[:, None], mask=inside)
    tl.store(lse_at, lse, mask=live)
