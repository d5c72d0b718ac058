"""Attention of many queries on a GPU: a program computes a tile of rows of a head over all keys.

A tile's rows may be at any positions. Keys before the first position need no mask, so only the
last tiles of keys, around the diagonal, are masked position by position.
Source: FlashAttention-2 (arXiv 2307.08691).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sps2.kernels import check
from sps2.kernels.gpu import tiles, upload
from sps2.kernels.gpu.attention_tile import begin, take
from sps2.kernels.gpu.softmax import LOG2E, finish
from sps2.kernels.state import Run, Scales, State

Part = tuple[Sequence[Run], Sequence[Run]]
"""One sequence of a batch: the runs of its queries, and of its keys."""


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
) -> State:
    """`sps2.kernels.attention` for several sequences at once.

    Args:
        parts: their queries cover the rows of q in order.
        tile: instead of the table's.
    """
    plan, tile, state, fresh = prepare(q, k, v, parts, scale, window, state, scales, tile)
    n, heads, dim = q.shape
    if not n or not heads:
        return state
    k_scale, v_scale = (k, v) if scales is None else scales
    with torch.cuda.device_of(q):
        _flash[len(plan.tiles), heads](
            *(q, k, v, k_scale, v_scale, *plan, *state),
            *strides(q, k, v, k_scale, v_scale, *state),
            scale,
            window or 0,
            GROUP=heads // k.shape[1],
            DIM=dim,
            PADDED=tiles.power(dim),
            ROWS=tile.rows,
            KEYS=tile.keys,
            WINDOWED=window is not None,
            SCALED=scales is not None,
            FRESH=fresh,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return state


class Plan(NamedTuple):
    """Tables on the device, int32.

    tiles: [tiles, 4] first row, rows, first and last run of keys. at: [n] positions of queries.
    runs: [runs, 3] slot, start and tokens of keys.
    """

    tiles: Tensor
    at: Tensor
    runs: Tensor


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    parts: Sequence[Part],
    scale: float,
    window: int | None,
    state: State | None,
    scales: Scales | None,
    tile: tiles.Tile | None,
) -> tuple[Plan, tiles.Tile, State, bool]:
    """Check the arguments; returns a launch's plan, tile and state, and if the state is new."""
    check.queries(q, scale)
    check.keys(q, k, v, scales)
    check.window(window)
    n, heads, dim = q.shape
    fixed = tuple((tuple(queries), tuple(keys)) for queries, keys in parts)
    _covered(n, k, fixed)
    fresh = state is None
    if state is None:
        made = torch.empty(n, heads, dim, device=q.device), torch.empty(n, heads, device=q.device)
        state = State(*made)
    else:
        check.state(q, state)
    longest = max((run.tokens for _, keys in fixed for run in keys), default=1)
    tile = tile or tiles.prefill(dim, q.dtype, q.device, n, longest)
    return _plan(fixed, tile.rows, q.device), tile, state, fresh


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """The strides of rows and heads of tensors, in the order of kernel arguments."""
    return tuple(stride for x in tensors for stride in x.stride()[:2])


@lru_cache(maxsize=64)
def _plan(
    parts: tuple[tuple[tuple[Run, ...], tuple[Run, ...]], ...], rows: int, device: torch.device
) -> Plan:
    """The tables of a launch, cached for all layers that share them."""
    cut: list[tuple[int, int, int, int]] = []
    runs: list[Run] = []
    at, first = [torch.empty(0, dtype=torch.int32)], 0
    for queries, keys in parts:
        stop = first + sum(run.tokens for run in queries)
        begin = len(runs)
        runs += [run for run in keys if run.tokens]
        cut += [(row, min(rows, stop - row), begin, len(runs)) for row in range(first, stop, rows)]
        at += [torch.arange(r.start, r.start + r.tokens, dtype=torch.int32) for r in queries]
        first = stop
    table = torch.tensor(cut, dtype=torch.int32).view(-1, 4)
    flat = torch.tensor(runs, dtype=torch.int32).view(-1, 3)
    return Plan(*(upload(each, device) for each in (table, torch.cat(at), flat)))


def _covered(n: int, k: Tensor, parts: Sequence[Part]) -> None:
    covered = sum(run.tokens for queries, _ in parts for run in queries)
    if covered != n:
        raise ValueError(f"queries cover {covered} rows, not the {n} of q")
    for _, keys in parts:
        for run in keys:
            inside = run.slot >= 0 and run.tokens >= 0 and run.slot + run.tokens <= len(k)
            if not inside:
                raise ValueError(f"keys have {run}, outside the {len(k)} rows of k")


@triton.jit
def _flash(
    Q, K, V, K_SCALE, V_SCALE, TILES, AT, RUNS, OUT, LSE,
    q_row, q_head, k_row, k_head, v_row, v_head,
    ks_row, ks_head, vs_row, vs_head, out_row, out_head, lse_row, lse_head,
    scale, window,
    GROUP: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
    WINDOWED: tl.constexpr, SCALED: tl.constexpr, FRESH: tl.constexpr,
):  # fmt: skip
    """Compute one tile of rows of one head over all its keys."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the last tiles see most keys: they go first
    head = tl.program_id(1).to(tl.int64)
    entry = TILES + tile * 4
    kv_head = head // GROUP
    rows = tl.load(entry) + tl.arange(0, ROWS)
    live = tl.arange(0, ROWS) < tl.load(entry + 1)
    dims = tl.arange(0, PADDED)
    inside = live[:, None] & (dims < DIM)[None, :]
    far = rows.to(tl.int64)[:, None]
    q = tl.load(Q + head * q_head + far * q_row + dims[None, :], mask=inside, other=0.0)
    at = tl.load(AT + rows, mask=live, other=0)
    first = tl.min(tl.where(live, at, 2147483647))
    last = tl.max(tl.where(live, at, -2147483648))

    into = OUT + head * out_head + far * out_row + dims[None, :]
    lse_at = LSE + head * lse_head + rows.to(tl.int64) * lse_row
    out, peak, weight = begin(into, lse_at, inside, live, ROWS, PADDED, FRESH)

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
