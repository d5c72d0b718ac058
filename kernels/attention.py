"""Attention of queries to keys at any positions: one contract, the best kernel for the device.

GPUs use a Triton kernel of `sps2.kernels.gpu`, CPUs with AVX2 or AVX-512 the C++ kernel of
`sps2.kernels.native`. Others use torch operations: `sps2.kernels.blocks` for many queries,
`sps2.kernels.paged` for one query per row.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from sps2.kernels import blocks, gpu, native, paged
from sps2.kernels.kv_quantize import restore_rows
from sps2.kernels.merge import merge_many
from sps2.kernels.relay import PagedRows
from sps2.kernels.state import Run, Scales, State, empty_state


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    queries: Sequence[Run],
    keys: Sequence[Run],
    scale: float | None = None,
    window: int | None = None,
    state: State | None = None,
    scales: Scales | None = None,
) -> State:
    """Causal attention of one sequence's queries to some of its keys.

    The key at position p is visible to the query at s iff p <= s and s - p < window.
    Deterministic for a given number of threads.

    Args:
        q: [n, heads, dim].
        k, v: [rows, kv_heads, dim], in the dtype of q or in int8; kv_heads divides heads.
        queries: the positions of q, as runs that cover its rows in order.
        keys: the rows of k and v to attend to, with their positions in the sequence.
        scale: factor of the scores; None is dim ** -0.5.
        window: keys that a query sees, its own included; None is all before it.
        state: of the same queries over other keys; it is updated in place, and returned.
        scales: of int8 k and v.

    Returns:
        out [n, heads, dim] float32 and lse [n, heads]; rows without visible keys have 0 and -inf.
    """
    n, heads, dim = q.shape
    scale = dim**-0.5 if scale is None else scale
    if gpu.serves(q):
        from sps2.kernels.gpu import flash

        return flash.attend(q, k, v, [(queries, keys)], scale, window, state, scales)
    if n and keys and scale > 0 and native.serves(q, k, v):
        return native.attend(q, k, v, queries, keys, scale, window, state, scales)
    whole = empty_state(n, heads, dim, q.device) if state is None else state
    if scales is not None:
        k, v, (keys,) = _restored(k, v, scales, [keys], q.dtype)
    for queried in queries:
        rows = slice(queried.slot, queried.slot + queried.tokens)
        states = [State(whole.out[rows], whole.lse[rows])]
        for key in keys:
            seen = slice(key.slot, key.slot + key.tokens)
            states.append(
                blocks.attend(q[rows], k[seen], v[seen], queried.start, key.start, scale, window)
            )
        whole.out[rows], whole.lse[rows] = merge_many(states)
    return whole


def paged_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    rows: PagedRows,
    *,
    scale: float | None = None,
    window: int | None = None,
    scales: Scales | None = None,
) -> State:
    """Attend each row's query to its own sequence's keys at or before its position.

    Keys that rows share are read once for all of them. With the C++ kernels on CPUs a row's result
    is bit-identical to its result alone.

    Args:
        q: [rows, heads, dim].
        k_pool, v_pool: [slots, kv_heads, dim], one layer's pool, in the dtype of q or in int8;
            fastest as a transposed view of [kv_heads, slots, dim].
        scale: factor of the scores; None is dim ** -0.5.
        window: keys that a query sees, its own included; None is all before it.
        scales: of an int8 pool.

    Returns:
        A float32 state with a row for each query; rows without keys have out 0 and lse -inf.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if gpu.serves(q):
        from sps2.kernels.gpu import decode

        return decode.attend(q, k_pool, v_pool, rows, scale, window, scales)
    if scale > 0 and native.serves(q, k_pool, v_pool):
        plan = rows.plan(window)
        return native.decode(q, k_pool, v_pool, rows.at, plan, scale, window, scales)
    parts = [part for level in rows.parts(window) for part in level]
    runs: Sequence[Sequence[Run]] = [part.runs for part in parts]
    if scales is not None:
        k_pool, v_pool, runs = _restored(k_pool, v_pool, scales, runs, q.dtype)
    of_rows = [part.rows for part in parts]
    return paged.attend(q, k_pool, v_pool, of_rows, runs, rows.positions, scale, window)


def _restored(
    k: Tensor, v: Tensor, scales: Scales, runs: Sequence[Sequence[Run]], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Sequence[Sequence[Run]]]:
    """Dequantise the keys and values of `runs`; returns them with the runs of their new rows."""
    slots = [torch.arange(run.slot, run.slot + run.tokens) for own in runs for run in own]
    where = torch.cat(slots) if slots else torch.empty(0, dtype=torch.int64)
    ends = itertools.accumulate((run.tokens for own in runs for run in own), initial=0)
    moved = [
        [Run(first, r.start, r.tokens) for r, first in zip(own, ends, strict=False)] for own in runs
    ]
    k, v = (restore_rows(x[where], by[where], dtype) for x, by in zip((k, v), scales, strict=True))
    return k, v, moved
