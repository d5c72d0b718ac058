"""Decode attention on a GPU: one query per row, and keys in pages that lie anywhere.

The keys of every row are split into pieces, so that few long rows fill the device as well as many
do; a program takes one piece with all heads of one KV head, so that keys are read once. What the
pieces give is merged. Source: flash-decoding, as in FlashInfer (arXiv 2501.01005), section 3.
"""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from torch import Tensor

from sps2.kernels.attention import PagedRows
from sps2.kernels.gpu import check, tiles, upload
from sps2.kernels.gpu.merge import merge_pieces
from sps2.kernels.gpu.softmax import LOG2E, finish, operand, product, weigh
from sps2.kernels.state import Scales, State

WAVES = 16
"""Programs for each multiprocessor, so that the last ones are a small part."""
LEAST = 256
"""Keys of a piece: with fewer, its state would weigh too much beside them."""
STEP = 64
"""Pieces are cut at multiples of this many keys, so that tiles are full."""


class Plan(NamedTuple):
    """How the keys of a batch are split; int32 on the device.

    segments: [segments, 2] first slot and keys, visible to their row.
    pieces: [pieces, 3] row, and its segments from the second to before the third.
    offsets: [rows + 1] first piece of each row.
    longest: keys of the longest segment.
    """

    segments: Tensor
    pieces: Tensor
    offsets: Tensor
    longest: int


_Key = tuple[int, int | None, int, torch.device, int]
_plans: WeakKeyDictionary[PagedRows, dict[_Key, Plan]] = WeakKeyDictionary()


def attend(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    rows: PagedRows,
    scale: float,
    window: int | None = None,
    scales: Scales | None = None,
    least: int = LEAST,
) -> State:
    """`sps2.kernels.paged_attention`.

    Args:
        least: keys of a piece.
    """
    check.queries(q, scale)
    check.keys(q, k_pool, v_pool, scales)
    check.window(window)
    check.require(len(rows.at) == len(q), f"rows has {len(rows.at)} rows, q {len(q)}")
    heads, dim = q.shape[1:]
    kv_heads = k_pool.shape[1]

    key = (len(k_pool), window, kv_heads, q.device, least)
    plans = _plans.setdefault(rows, {})
    if key not in plans:
        plans[key] = plan(rows, *key)
    segments, pieces, offsets, longest = plans[key]
    tile = tiles.decode(dim, q.dtype, heads // kv_heads, longest)
    state = State(
        torch.empty(len(pieces), heads, dim, device=q.device),
        torch.empty(len(pieces), heads, device=q.device),
    )
    k_scale, v_scale = (k_pool, v_pool) if scales is None else scales
    if len(pieces):
        with torch.cuda.device_of(q):
            _decode[len(pieces), kv_heads](
                *(q, k_pool, v_pool, k_scale, v_scale, segments, pieces, *state),
                *(*q.stride()[:2], *k_pool.stride()[:2], *v_pool.stride()[:2]),
                *(*k_scale.stride()[:2], *v_scale.stride()[:2]),
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
    return merge_pieces(state, offsets)


def plan(
    rows: PagedRows, slots: int, window: int | None, kv_heads: int, device: torch.device, least: int
) -> Plan:
    """Split what each row sees into pieces of about equal length, on the host.

    Args:
        slots: of the pool.
    """
    flat = [run for own in rows.runs for run in own]
    slot, start, tokens = torch.tensor(flat, dtype=torch.int64).view(-1, 3).unbind(1)
    inside = bool(((slot >= 0) & (tokens >= 0) & (slot + tokens <= slots)).all())
    check.require(inside, f"rows has runs outside the {slots} slots of k_pool")
    count = len(rows.at)
    runs = torch.tensor([len(own) for own in rows.runs], dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(count), runs)
    stop = torch.minimum(start + tokens, rows.at[owner] + 1)
    first = start if window is None else torch.maximum(start, rows.at[owner] + 1 - window)
    seen = stop > first
    slot, length, owner = (slot + first - start)[seen], (stop - first)[seen], owner[seen]

    # all visible keys one after the other: runs begin at `begin`, rows at `base`
    total = torch.zeros(count, dtype=torch.int64).index_add_(0, owner, length)
    begin, base = length.cumsum(0) - length, total.cumsum(0) - total
    size = max(least, -(-int(total.sum()) * kv_heads // (WAVES * _processors(device))))
    split = -(-total // size)
    offsets = torch.cat((split.new_zeros(1), split.cumsum(0)))
    of = torch.repeat_interleave(torch.arange(count), split)
    number = torch.arange(len(of)) - offsets[of]
    step = min(STEP, least)
    starts = base[of] + number * total[of] // split[of] // step * step

    cuts = torch.cat((begin, starts)).unique()
    run = torch.searchsorted(begin, cuts, right=True) - 1
    ends = torch.cat((cuts, total.sum()[None]))[1:]
    segments = torch.stack((slot[run] + cuts - begin[run], ends - cuts), 1)
    into = torch.searchsorted(cuts, torch.cat((starts, total.sum()[None])))
    pieces = torch.stack((of, into[:-1], into[1:]), 1)
    longest = int(segments[:, 1].max()) if len(segments) else 1
    tables = [upload(each.int(), device) for each in (segments, pieces, offsets)]
    return Plan(tables[0], tables[1], tables[2], longest)


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@triton.jit
def _decode(
    Q, K, V, K_SCALE, V_SCALE, SEGMENTS, PIECES, OUT, LSE,
    q_row, q_head, k_row, k_head, v_row, v_head, ks_row, ks_head, vs_row, vs_head,
    scale, heads,
    GROUP: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    piece = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    row = tl.load(PIECES + piece * 3).to(tl.int64)
    dims = tl.arange(0, PADDED)
    member = tl.arange(0, ROWS)
    inside = (member < GROUP)[:, None] & (dims < DIM)[None, :]
    q_at = Q + row * q_row + (kv_head * GROUP + member)[:, None] * q_head + dims[None, :]
    q = tl.load(q_at, mask=inside, other=0.0)
    out = tl.zeros([ROWS, PADDED], dtype=tl.float32)
    weight = tl.zeros([ROWS], dtype=tl.float32)
    peak = weight - float("inf")

    K += kv_head * k_head
    V += kv_head * v_head
    K_SCALE += kv_head * ks_head
    V_SCALE += kv_head * vs_head
    ahead = tl.arange(0, KEYS)
    for segment in range(tl.load(PIECES + piece * 3 + 1), tl.load(PIECES + piece * 3 + 2)):
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
    place = piece * heads + kv_head * GROUP + member
    tl.store(OUT + place[:, None] * DIM + dims[None, :], out / whole[:, None], mask=inside)
    tl.store(LSE + place, lse, mask=member < GROUP)
