"""Attention of many queries on a GPU: a program computes a tile of rows of a head over its keys.

A tile's rows may be at any positions. Keys before the first position need no mask, so only the
last tiles of keys, around the diagonal, are masked position by position. If there are fewer queries
than a tile has rows, a tile has those of all heads of a KV head, whose keys are then read once. If
the tiles do not fill the device, their keys are split, and the states of the pieces are merged.
Sources: FlashAttention-2 (arXiv 2307.08691); splitting as in flash-decoding (FlashInfer, arXiv
2501.01005, section 3).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sps2.kernels import check
from sps2.kernels.gpu import processors, tiles, upload
from sps2.kernels.gpu.attention_tile import begin, take
from sps2.kernels.gpu.merge import merge_into, merge_pieces
from sps2.kernels.gpu.softmax import LOG2E, finish
from sps2.kernels.state import Run, Scales, State

Part = tuple[Sequence[Run], Sequence[Run]]
"""One sequence of a batch: the runs of its queries, and of its keys."""
LEAST = 512
"""Minimum of keys of a piece: with fewer, writing its state would dominate."""


class Cut(NamedTuple):
    """How the work of a launch is cut.

    pack: heads of a tile's rows: all of a KV head, or 1.
    rows: of a tile, those of all its heads.
    pieces: into which the keys of every tile are split.
    """

    pack: int
    rows: int
    pieces: int


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    parts: Sequence[Part],
    scale: float,
    window: int | None = None,
    state: State | None = None,
    scales: Scales | None = None,
    tile: tiles.Tile | None = None,
    pieces: int | None = None,
) -> State:
    """`sps2.kernels.attention` for several sequences at once.

    Args:
        parts: their queries cover the rows of q in order.
        tile: instead of the table's.
        pieces: into which the keys of every tile are split; None: as many as fill the device.
    """
    check.queries(q, scale)
    check.keys(q, k, v, scales)
    check.window(window)
    n, heads, dim = q.shape
    fixed = tuple((tuple(queries), tuple(keys)) for queries, keys in parts)
    _covered(n, k, fixed)
    if state is not None:
        check.state(q, state)
    if not n or not heads:
        return state or _new_state(q, 1)
    group = heads // k.shape[1]
    tile, pack = tile_of(q, group, tile)
    if pieces is None:
        pieces = _pieces(n, heads, pack, tile.rows, fixed, processors(q.device))
    plan = _plan(fixed, Cut(pack, tile.rows, pieces), window, q.device)
    split = pieces > 1
    onto = _new_state(q, pieces) if split or state is None else state
    _launch(plan, tile, pack, q, k, v, scale, window, scales, onto, state is not None and not split)
    if not split:
        return onto
    whole = State(onto.out.view(-1, heads, dim), onto.lse.view(-1, heads))
    made = merge_pieces(whole, plan.offsets)
    return made if state is None else merge_into(state, made)


class Plan(NamedTuple):
    """Tables on the device, int32.

    tiles: [tiles, 5] first query, queries, first and last run of keys, and number of the piece.
    at: [n] positions of queries.
    runs: [runs, 3] slot, start and tokens of keys.
    offsets: [n + 1] the first piece of each row.
    """

    tiles: Tensor
    at: Tensor
    runs: Tensor
    offsets: Tensor


def _new_state(q: Tensor, pieces: int) -> State:
    """Memory for states of the rows of q, or of the pieces of each row."""
    n, heads, dim = q.shape
    rows = (n,) if pieces == 1 else (n, pieces)
    out = torch.empty(*rows, heads, dim, device=q.device)
    return State(out, torch.empty(*rows, heads, device=q.device))


def tile_of(q: Tensor, group: int, tile: tiles.Tile | None = None) -> tuple[tiles.Tile, int]:
    """The tile for these queries, and how many heads its rows have: `group`, or 1."""
    n, _, dim = q.shape
    most = (tile or tiles.prefill(dim, q.dtype, q.device)).rows
    pack = group if n < most and group <= most else 1
    return tile or tiles.prefill(dim, q.dtype, q.device, n * pack), pack


def _pieces(
    n: int, heads: int, pack: int, rows: int, parts: Sequence[Part], processors: int
) -> int:
    programs = -(-n * pack // rows) * heads // pack
    if programs >= processors:
        return 1
    longest = max((sum(run.tokens for run in keys) for _, keys in parts), default=0)
    return max(1, min(-(-2 * processors // programs), longest // LEAST))


def _launch(
    plan: Plan,
    tile: tiles.Tile,
    pack: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int | None,
    scales: Scales | None,
    onto: State,
    more: bool,
) -> None:
    """Args: more: whether `onto` has a state, which the result is merged with."""
    heads, dim = q.shape[1:]
    k_scale, v_scale = (k, v) if scales is None else scales
    grid = len(plan.tiles), heads // pack
    out, lse = onto
    state_strides = out.stride(0), out.stride(-2), lse.stride(0), lse.stride(-1)
    piece_strides = (out.stride(1), lse.stride(1)) if out.dim() > 3 else (0, 0)

    def launch(tile: tiles.Tile) -> None:
        _flash[grid](
            *(q, k, v, k_scale, v_scale, plan.tiles, plan.at, plan.runs, *onto),
            *strides(q, k, v, k_scale, v_scale),
            *(*state_strides, *piece_strides, scale, window or 0, int(more)),
            GROUP=heads // k.shape[1],
            PACK=pack,
            DIM=dim,
            PADDED=tiles.power(dim),
            ROWS=tile.rows,
            KEYS=tile.keys,
            WINDOWED=window is not None,
            SCALED=scales is not None,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    with torch.cuda.device_of(q):
        tiles.launch(("flash", dim, q.dtype, scales is None), tile, launch)


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """The strides of rows and heads of tensors, in the order of kernel arguments."""
    return tuple(stride for x in tensors for stride in x.stride()[:2])


@lru_cache(maxsize=64)
def _plan(
    parts: tuple[tuple[tuple[Run, ...], tuple[Run, ...]], ...],
    cut: Cut,
    window: int | None,
    device: torch.device,
) -> Plan:
    """The tables of a launch, cached for all layers that share them."""
    each = max(1, cut.rows // cut.pack)
    found: list[tuple[int, int, int, int, int]] = []
    runs: list[Run] = []
    at = [torch.empty(0, dtype=torch.int32)]
    first = 0
    for queries, keys in parts:
        own = torch.cat(
            [
                at[0],
                *(torch.arange(r.start, r.start + r.tokens, dtype=torch.int32) for r in queries),
            ]
        )
        stop, begin = first + len(own), len(runs)
        if cut.pieces == 1:
            runs += [run for run in keys if run.tokens]
            of_tiles = [[(begin, len(runs))]] * -(-len(own) // each)
        else:
            of_tiles = []
            for rows in own.split(each):
                of_tiles.append([])
                for piece in _split(keys, rows, window, cut.pieces):
                    of_tiles[-1].append((len(runs), len(runs) + len(piece)))
                    runs += piece
        for row, spans in zip(range(first, stop, each), of_tiles, strict=True):
            count = min(each, stop - row)
            found += [(row, count, *span, piece) for piece, span in enumerate(spans)]
        at.append(own)
        first = stop
    table = torch.tensor(found, dtype=torch.int32).view(-1, 5)
    flat = torch.tensor(runs, dtype=torch.int32).view(-1, 3)
    offsets = torch.arange(first + 1, dtype=torch.int32) * cut.pieces
    return Plan(*(upload(each, device) for each in (table, torch.cat(at), flat, offsets)))


def _split(keys: Sequence[Run], at: Tensor, window: int | None, pieces: int) -> list[list[Run]]:
    """The keys that rows at positions `at` see, in pieces of about equal length."""
    start = 0 if window is None else max(0, int(at.min()) - window + 1)
    stop = int(at.max()) + 1
    seen = []
    for slot, first, tokens in keys:
        begin, end = max(first, start), min(first + tokens, stop)
        if begin < end:
            seen.append(Run(slot + begin - first, begin, end - begin))
    total = sum(run.tokens for run in seen)
    ends = [total * piece // pieces for piece in range(1, pieces + 1)]
    found: list[list[Run]] = [[] for _ in ends]
    before, piece = 0, 0
    for slot, first, tokens in seen:
        taken = 0
        while taken < tokens:
            while before == ends[piece]:
                piece += 1
            count = min(tokens - taken, ends[piece] - before)
            found[piece].append(Run(slot + taken, first + taken, count))
            taken, before = taken + count, before + count
    return found


def _covered(n: int, k: Tensor, parts: Sequence[Part]) -> None:
    covered = sum(run.tokens for queries, _ in parts for run in queries)
    if covered != n:
        raise ValueError(f"queries cover {covered} rows, not the {n} of q")
    for _, keys in parts:
        for run in keys:
            inside = run.slot >= 0 and run.tokens >= 0 and run.slot + run.tokens <= len(k)
            if not inside:
                raise ValueError(f"keys have {run}, outside the {len(k)} rows of k")


@triton.jit(
    do_not_specialize=[
        *("LSE", "window", "more", "lse_row", "lse_head", "out_piece", "lse_piece"),
        *("ks_head", "vs_head"),
    ]
)
def _flash(
    Q, K, V, K_SCALE, V_SCALE, TILES, AT, RUNS, OUT, LSE,
    q_row, q_head, k_row, k_head, v_row, v_head, ks_row, ks_head, vs_row, vs_head,
    out_row, out_head, lse_row, lse_head, out_piece, lse_piece,
    scale, window, more,
    GROUP: tl.constexpr, PACK: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WINDOWED: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Compute one tile of rows over a piece of its keys."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the last tiles see most keys: they go first
    entry = TILES + tile * 5
    kv_head = (tl.program_id(1) * PACK // GROUP).to(tl.int64)
    place = tl.arange(0, ROWS)
    head = (tl.program_id(1) * PACK + place % PACK).to(tl.int64)
    rows = tl.load(entry) + place // PACK
    live = place < tl.load(entry + 1) * PACK
    piece = tl.load(entry + 4).to(tl.int64)
    dims = tl.arange(0, PADDED)
    inside = live[:, None] & (dims < DIM)[None, :]
    far = rows.to(tl.int64)
    q_at = Q + (head * q_head + far * q_row)[:, None] + dims[None, :]
    q = tl.load(q_at, mask=inside, other=0.0)
    at = tl.load(AT + rows, mask=live, other=0)
    first = tl.min(tl.where(live, at, 2147483647))
    last = tl.max(tl.where(live, at, -2147483648))

    into = OUT + (head * out_head + far * out_row + piece * out_piece)[:, None] + dims[None, :]
    lse_at = LSE + head * lse_head + far * lse_row + piece * lse_piece
    known = place < tl.load(entry + 1) * PACK * more
    out, peak, weight = begin(into, lse_at, known[:, None] & (dims < DIM)[None, :], known)

    K += kv_head * k_head
    V += kv_head * v_head
    K_SCALE += kv_head * ks_head
    V_SCALE += kv_head * vs_head
    factor = scale * LOG2E
    for run in range(tl.load(entry + 2), tl.load(entry + 3)):
        start = tl.load(RUNS + run * 3 + 1)
        before = tl.load(RUNS + run * 3).to(tl.int64) - start  # slot less position
        stop = tl.minimum(start + tl.load(RUNS + run * 3 + 2), last + 1)
        if WINDOWED:
            start = tl.maximum(start, first - window + 1)
            whole = start
        else:
            whole = start + tl.maximum(tl.minimum(stop, first + 1) - start, 0) // KEYS * KEYS
        for key in range(start, whole, KEYS):
            slot = before + key
            out, peak, weight = take(
                q, out, peak, weight, at, factor, window, key, stop,
                K + slot * k_row, V + slot * v_row,
                K_SCALE + slot * ks_row, V_SCALE + slot * vs_row,
                k_row, v_row, ks_row, vs_row,
                DIM, PADDED, KEYS, False, WINDOWED, SCALED,
            )  # fmt: skip
        for key in range(whole, stop, KEYS):
            slot = before + key
            out, peak, weight = take(
                q, out, peak, weight, at, factor, window, key, stop,
                K + slot * k_row, V + slot * v_row,
                K_SCALE + slot * ks_row, V_SCALE + slot * vs_row,
                k_row, v_row, ks_row, vs_row,
                DIM, PADDED, KEYS, True, WINDOWED, SCALED,
            )  # fmt: skip

    whole_weight, lse = finish(peak, weight)
    tl.store(into, out / whole_weight[:, None], mask=inside)
    tl.store(lse_at, lse, mask=live)
