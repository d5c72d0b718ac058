"""Decode attention on a GPU: one query per row, keys in pages anywhere in the pool.

The keys of every part of a batch (`sps2.kernels.relay`) are split into pieces, so that few long
rows fill the device as well as many do. A program processes one piece, for all heads of one KV head
and for all rows that share the keys, so that keys are read once. The results of a row's pieces are
merged.
Sources: flash-decoding, as in FlashInfer (arXiv 2501.01005), section 3; RelayAttention (arXiv
2402.14808).
"""

from collections.abc import Hashable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from torch import Tensor

from sps2.kernels import check
from sps2.kernels.gpu import tiles
from sps2.kernels.gpu.flash import strides
from sps2.kernels.gpu.merge import merge_pieces
from sps2.kernels.gpu.pieces import LEAST, Pieces, cut
from sps2.kernels.gpu.softmax import LOG2E, finish, operand, product, weigh
from sps2.kernels.gpu.tiles import Tile
from sps2.kernels.relay import PagedRows
from sps2.kernels.state import Scales, State


class Plan(NamedTuple):
    """How the batch is cut for queries and a pool of one form, made once for all layers.

    launches: tables of pieces, each with its tile.
    """

    pieces: Pieces
    launches: list[tuple[Tensor, Tile]]


_plans: WeakKeyDictionary[PagedRows, dict[Hashable, Plan]] = WeakKeyDictionary()


def attend(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    rows: PagedRows,
    scale: float,
    window: int | None = None,
    scales: Scales | None = None,
    least: int = LEAST,
    tile: Tile | None = None,
) -> State:
    """`sps2.kernels.paged_attention`.

    Args:
        least: minimum of keys of a piece.
        tile: for all pieces; None: the table's, for pieces of one row and for shared ones.
    """
    forms = map(check.form, (q, k_pool, v_pool, *(scales or ())))
    key = (*forms, scale, window, least, tile)
    plans = _plans.setdefault(rows, {})
    if key not in plans:
        plans[key] = _plan(q, k_pool, v_pool, rows, scale, window, scales, least, tile)
    plan = plans[key]
    heads, dim = q.shape[1:]
    kv_heads, members = k_pool.shape[1], len(plan.pieces.members)
    k_scale, v_scale = (k_pool, v_pool) if scales is None else scales
    state = State(
        torch.empty(members, heads, dim, device=q.device),
        torch.empty(members, heads, device=q.device),
    )

    for pieces, fitting in plan.launches:

        def launch(tile: Tile, pieces: Tensor = pieces) -> None:
            _decode[len(pieces), kv_heads](
                *(q, k_pool, v_pool, k_scale, v_scale),
                *(plan.pieces.segments, pieces, plan.pieces.members, *state),
                *strides(q, k_pool, v_pool, k_scale, v_scale),
                scale,
                heads,
                GROUP=heads // kv_heads,
                DIM=dim,
                PADDED=tiles.power(dim),
                ROWS=tile.rows,
                KEYS=tile.keys,
                SCALED=scales is not None,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )

        with torch.cuda.device_of(q):
            tiles.launch(("decode", dim, q.dtype, scales is None), fitting, launch)
    return merge_pieces(state, plan.pieces.offsets)


def _plan(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    rows: PagedRows,
    scale: float,
    window: int | None,
    scales: Scales | None,
    least: int,
    tile: Tile | None,
) -> Plan:
    """Check the arguments, and cut the keys into pieces."""
    check.queries(q, scale)
    check.keys(q, k_pool, v_pool, scales)
    check.window(window)
    if len(rows.at) != len(q):
        raise ValueError(f"rows has {len(rows.at)} rows, q {len(q)}")
    heads, dim = q.shape[1:]
    slots, kv_heads, _ = k_pool.shape
    group = heads // kv_heads
    most = together(dim, q.dtype, group) if tile is None else max(1, tile.rows // group)
    pieces = cut(rows, slots, window, kv_heads, q.device, least, most)
    if tile is not None:
        return Plan(pieces, [(torch.cat((pieces.shared, pieces.alone)), tile)])
    launches = [
        (table, tiles.decode(dim, q.dtype, q.device, group * members))
        for table, members in ((pieces.alone, 1), (pieces.shared, pieces.most))
        if len(table)
    ]
    return Plan(pieces, launches)


def together(dim: int, dtype: torch.dtype, group: int) -> int:
    """Maximum of rows of a piece, of `group` heads each."""
    return max(1, tiles.shared(dim, dtype) // group)


@triton.jit(do_not_specialize=["heads", "ks_head", "vs_head"])
def _decode(
    Q, K, V, K_SCALE, V_SCALE, SEGMENTS, PIECES, MEMBERS, OUT, LSE,
    q_row, q_head, k_row, k_head, v_row, v_head, ks_row, ks_head, vs_row, vs_head,
    scale, heads,
    GROUP: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Attend to a piece of keys of a KV head, for all rows that see it; ROWS are their heads."""
    piece, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    entry = PIECES + piece * 4
    dims = tl.arange(0, PADDED)
    place = tl.arange(0, ROWS)
    live = place // GROUP < tl.load(entry + 1)
    member = MEMBERS + (tl.load(entry) + place // GROUP) * 2
    row = tl.load(member, mask=live, other=0).to(tl.int64)
    to = tl.load(member + 1, mask=live, other=0).to(tl.int64)
    head = kv_head * GROUP + place % GROUP
    inside = live[:, None] & (dims < DIM)[None, :]
    q_at = Q + (row * q_row + head * q_head)[:, None] + dims[None, :]
    q = tl.load(q_at, mask=inside, other=0.0)
    out = tl.zeros([ROWS, PADDED], dtype=tl.float32)
    weight = tl.zeros([ROWS], dtype=tl.float32)
    peak = weight - float("inf")

    K += kv_head * k_head
    V += kv_head * v_head
    K_SCALE += kv_head * ks_head
    V_SCALE += kv_head * vs_head
    ahead = tl.arange(0, KEYS)
    for segment in range(tl.load(entry + 2), tl.load(entry + 3)):
        slot = tl.load(SEGMENTS + segment * 2).to(tl.int64)
        count = tl.load(SEGMENTS + segment * 2 + 1)
        for key in range(0, count, KEYS):
            there = key + ahead < count
            at = slot + key
            k_at = K + at * k_row + ahead[None, :] * k_row + dims[:, None]
            k = tl.load(k_at, mask=there[None, :] & (dims < DIM)[:, None], other=0)
            v_at = V + at * v_row + ahead[:, None] * v_row + dims[None, :]
            v = tl.load(v_at, mask=there[:, None] & (dims < DIM)[None, :], other=0)
            scores = product(q, operand(k, q), tl.zeros([ROWS, KEYS], dtype=tl.float32))
            if SCALED:
                k_scale = tl.load(K_SCALE + (at + ahead) * ks_row, mask=there, other=0.0)
                scores *= k_scale[None, :]
            scores = tl.where(there[None, :], scores, float("-inf"))
            shares, peak, weight, shrink = weigh(scores, scale * LOG2E, peak, weight, False)
            if SCALED:
                v_scale = tl.load(V_SCALE + (at + ahead) * vs_row, mask=there, other=0.0)
                shares *= v_scale[None, :]
            out = product(shares.to(q.dtype), operand(v, q), out * shrink[:, None])

    whole, lse = finish(peak, weight)
    into = to * heads + head
    tl.store(OUT + into[:, None] * DIM + dims[None, :], out / whole[:, None], mask=inside)
    tl.store(LSE + into, lse, mask=live)
