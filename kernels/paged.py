"""Decode attention over paged KV in torch operations: one query per row.

torch's flash kernel is slow for long contexts in bfloat16: for one query, two products by oneDNN
take half the time from some hundred keys on. They are used if the CPU multiplies bfloat16. Their
scores are rounded; if these are large, the products are computed again minus the row's peak.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sps2.kernels.blocks import fast_bfloat16
from sps2.kernels.merge import merge, merge_many
from sps2.kernels.state import Run, State, empty_state

LONG = 640
"""Number of keys from which on products are faster than the flash kernel."""
LARGE = 32.0
"""Scores up to this may be rounded to bfloat16: the error is below that of rounding q and k."""


def attend(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    rows: Sequence[Sequence[int]],
    runs: Sequence[Sequence[Run]],
    positions: Sequence[int],
    scale: float,
    window: int | None,
) -> State:
    """`sps2.kernels.paged_attention`, for parts as in `sps2.kernels.relay`.

    Args:
        rows: the rows of each part; if there are several, they see all of its keys.
        runs: the keys of each part.
    """
    count, heads, dim = q.shape
    kv_heads = k_pool.shape[1]
    grouped = q.reshape(count, kv_heads, heads // kv_heads, dim)
    keys, values = k_pool.transpose(0, 1), v_pool.transpose(0, 1)
    products = q.dtype == torch.bfloat16 and fast_bfloat16()

    whole = empty_state(count, heads, dim)
    for those, part in zip(rows, runs, strict=True):
        if len(those) == 1:
            part = [_visible(run, positions[those[0]], window) for run in part]
        slots = [slice(run.slot, run.slot + run.tokens) for run in part if run.tokens > 0]
        if slots:
            pieces = [(keys[:, each], values[:, each]) for each in slots]
            long = sum(k.shape[1] for k, _ in pieces) >= LONG
            attend = _products if products and long else _flash
            queries = grouped[those].transpose(0, 1).flatten(1, 2)
            out, lse = attend(queries, pieces, scale)
            out = out.view(kv_heads, len(those), -1, dim).transpose(0, 1).reshape(-1, heads, dim)
            lse = lse.view(kv_heads, len(those), -1).transpose(0, 1).reshape(-1, heads)
            state = merge(State(whole.out[those], whole.lse[those]), State(out.float(), lse))
            whole.out[those], whole.lse[those] = state
    return whole


def _visible(run: Run, position: int, window: int | None) -> Run:
    stop = min(run.start + run.tokens, position + 1)
    start = run.start if window is None else max(run.start, position + 1 - window)
    return Run(run.slot + start - run.start, start, stop - start)


def _products(
    q: Tensor, pieces: list[tuple[Tensor, Tensor]], scale: float
) -> tuple[Tensor, Tensor]:
    """q: [kv_heads, group, dim]; pieces of k and v: [kv_heads, tokens, dim]."""
    columns = q.mT.contiguous()
    scores = _join([torch.bmm(k, columns) for k, _ in pieces]).mul_(scale)
    peak = scores.amax(-1)
    if float(peak.abs().max()) > LARGE:
        shift = (peak / -scale).to(q.dtype)
        scores = _join([torch.baddbmm(shift[:, None], k, columns) for k, _ in pieces]).mul_(scale)
        peak = scores.amax(-1)
        base = peak - shift.float() * scale
    else:
        base = peak
    weights = scores.softmax(-1)
    lse = base - weights.amax(-1).log_()

    shares = weights.to(q.dtype).split([k.shape[1] for k, _ in pieces], -1)
    parts = [torch.bmm(share, v) for share, (_, v) in zip(shares, pieces, strict=True)]
    out = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0, dtype=torch.float32)
    return out.to(q.dtype), lse


def _join(scores: list[Tensor]) -> Tensor:
    """[kv_heads, tokens, group] each, to [kv_heads, group, all tokens] in float32."""
    joined = scores[0] if len(scores) == 1 else torch.cat(scores, 1)
    return joined.mT.to(torch.float32, memory_format=torch.contiguous_format)


def _flash(q: Tensor, pieces: list[tuple[Tensor, Tensor]], scale: float) -> tuple[Tensor, Tensor]:
    """As `_products`, by torch's flash kernel: a KV head's group of queries is one sequence."""
    states = []
    for k, v in pieces:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[None], k[None], v[None], scale=scale
        )
        states.append(State(out[0].flatten(0, 1)[:, None], lse[0].flatten()[:, None]))
    merged = merge_many(states)
    return merged.out, merged.lse
