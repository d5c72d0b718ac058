"""Attention of many queries in torch operations, by a few large products per block of queries.

A block of queries, with all heads of one KV head stacked, attends to all its visible keys at once:
product, exp2, product. Two things make that fast and exact:

- A bfloat16 product rounds the scores, too coarsely where they are large. Softmax ignores a shift
  per row, so the product itself subtracts an estimate of the row's peak before it rounds (one more
  column: `-peak` in q, 1 in k): the scores that matter come out small, and exp2 needs no maximum.
- The estimate is the peak over a sample: every `NEAR`th of the latest keys, every `FAR`th before.
  A block where it is off by `DRIFT` is computed again in the plain way, in float32.

float32 takes oneDNN's product, which is twice as fast as the one behind `torch.mm`; float16, and
bfloat16 on a CPU without bfloat16 products, are computed in float32.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.kernels.state import State, empty_state

ROWS = 768
"""Rows of one block: queries times heads per KV head."""
QUERIES = 32, 256
"""Minimum and maximum of queries of one block."""
KEYS = 1024
"""Keys in one product: their scores should fit the L2 cache, or nearly."""
ALIGN = 128
"""Columns come in multiples of this, since oneDNN compiles a product for every shape it meets."""
NEAR, FAR = 2, 32
DRIFT = 24.0
"""Largest error of the estimate, in powers of two."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_start: int,
    k_start: int,
    scale: float,
    window: int | None,
) -> State:
    """`sps2.kernels.attention` between two runs of consecutive positions; either may be empty.

    Args:
        q: [n, heads, dim], at positions from `q_start`.
        k, v: [m, kv_heads, dim], at positions from `k_start`.
    """
    n, heads, dim = q.shape
    first = k_start if window is None else max(k_start, q_start - window + 1)
    stop = min(k_start + len(k), q_start + n)
    if not n or first >= stop:
        return empty_state(n, heads, dim, q.device)
    seen = slice(first - k_start, stop - k_start)
    return _Blocks(q_start, first, scale, window).attend(q, k[seen], v[seen])


class _Keys(NamedTuple):
    """Keys of one KV head at positions from `start` to `stop`, padded with invisible keys.

    k: [padded, dim + 1], ending in 1.
    v: [padded, dim].
    """

    start: int
    stop: int
    k: Tensor
    v: Tensor

    def sampled(self, first: int, turn: int, stop: int) -> Tensor:
        """Sample k: every `FAR`th key from `first` to `turn`, then every `NEAR`th to `stop`."""
        first, turn, stop = (position - self.start for position in (first, turn, stop))
        return torch.cat((self.k[first:turn:FAR], self.k[turn:stop:NEAR]))


class _Blocks:
    """Attention of queries from `q_start` to keys from `k_start`."""

    def __init__(self, q_start: int, k_start: int, scale: float, window: int | None) -> None:
        self.q_start = q_start
        self.k_start = k_start
        self.scale = scale * math.log2(math.e)
        self.window = window
        self.hidden: dict[tuple[int, int, int], Tensor] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> State:
        n, heads, dim = q.shape
        m, kv_heads, _ = k.shape
        group = heads // kv_heads
        size = min(n, max(QUERIES[0], min(ROWS // group, QUERIES[1])))
        compute = q.dtype if q.dtype == torch.bfloat16 and fast_bfloat16() else torch.float32
        scratch = torch.empty(size * group * min(KEYS, m + ALIGN), dtype=compute)

        out = torch.empty(n, heads, dim)
        lse = torch.empty(n, heads)
        rows = torch.empty(n, group, dim + 1, dtype=compute)
        for kv_head in range(kv_heads):
            keys = self._keys(k[:, kv_head].to(compute), v[:, kv_head].to(compute))
            mine = slice(kv_head * group, (kv_head + 1) * group)
            rows[..., :dim] = q[:, mine]
            for first in range(0, n, size):
                block = slice(first, min(first + size, n))
                state = self._block(rows[block], self.q_start + first, keys, scratch)
                out[block, mine], lse[block, mine] = state
        return State(out, lse)

    def _keys(self, k: Tensor, v: Tensor) -> _Keys:
        m, dim = k.shape
        wide, values = k.new_zeros(m + ALIGN, dim + 1), v.new_zeros(m + ALIGN, dim)
        wide[:m, :dim] = k
        wide[:m, dim] = 1
        values[:m] = v
        return _Keys(self.k_start, self.k_start + m, wide, values)

    def _block(self, rows: Tensor, start: int, keys: _Keys, scratch: Tensor) -> State:
        """The state of queries from position `start` on. rows: [queries, group, dim + 1], which
        are overwritten."""
        queries, group, width = rows.shape
        first = keys.start if self.window is None else max(keys.start, start - self.window + 1)
        last = min(keys.stop, start + queries)
        if first >= last:
            return empty_state(queries, group, width - 1)

        state, safe = self._estimated(
            rows.flatten(0, 1), start, queries, keys, first, last, scratch
        )
        if not safe:
            state = self._exact(rows.flatten(0, 1).float(), start, queries, keys, first, last)
        return State(*(tensor.unflatten(0, (queries, group)) for tensor in state))

    def _estimated(
        self,
        flat: Tensor,
        start: int,
        queries: int,
        keys: _Keys,
        first: int,
        last: int,
        scratch: Tensor,
    ) -> tuple[State, bool]:
        """The state of `flat` over keys from `first` to `last`, and whether the estimate held."""
        flat[:, -1] = 0
        sample = keys.sampled(first, max(first, last - queries), last)
        peak = _scores(sample, flat, self.scale).amax(0)
        flat[:, -1] = peak / -self.scale

        parts = []
        for begin in range(first, last, KEYS):
            end = min(begin + KEYS, begin + -(-(last - begin) // ALIGN) * ALIGN)
            columns = slice(begin - keys.start, end - keys.start)
            weights = scratch[: len(flat) * (end - begin)].view(len(flat), end - begin)
            weights = _scores(flat, keys.k[columns], self.scale, weights)
            self._hide(weights, queries, begin - start)
            weights[:, keys.stop - begin :] = -torch.inf
            weight = weights.exp2_().sum(-1, dtype=torch.float32)
            parts.append((_mix(weights, keys.v[columns]).float(), weight))

        out, weight = parts[0]
        for more, heavier in parts[1:]:
            out += more
            weight += heavier
        blind = self._blind(start, queries, first, last).repeat_interleave(len(flat) // queries)
        out /= weight.masked_fill(blind, 1)[:, None]
        above = weight.log2_()
        lse = (above - flat[:, -1].float() * self.scale) * math.log(2)
        safe = (above.abs_() <= DRIFT) | blind
        return State(out, lse), bool(safe.all())

    def _exact(
        self, flat: Tensor, start: int, queries: int, keys: _Keys, first: int, last: int
    ) -> State:
        """As `_estimated`, with the exact peak, in float32."""
        columns = slice(first - keys.start, last - keys.start)
        flat[:, -1] = 0
        scores = _scores(flat, keys.k[columns].float(), self.scale)
        self._hide(scores, queries, first - start)
        peak = scores.amax(-1).clamp_(min=torch.finfo(torch.float32).min)
        weights = scores.sub_(peak[:, None]).exp2_()
        weight = weights.sum(-1)
        out = _mix(weights, keys.v[columns].float()) / weight.clamp(min=1)[:, None]
        return State(out, (weight.log2_() + peak) * math.log(2))

    def _blind(self, start: int, queries: int, first: int, last: int) -> Tensor:
        """[queries] bool: which queries from `start` on see no key from `first` to `last`."""
        positions = torch.arange(start, start + queries)
        blind = positions < first
        return blind if self.window is None else blind | (positions - self.window >= last - 1)

    def _hide(self, scores: Tensor, queries: int, ahead: int) -> None:
        """Set the scores of invisible keys to -inf; column 0 is `ahead` of the first query."""
        scores = scores.unflatten(0, (queries, -1))
        columns = scores.shape[-1]
        seen_by_all = max(0, 1 - ahead)
        if seen_by_all < columns:
            hidden = self._hidden(queries, columns - seen_by_all, ahead + seen_by_all)
            scores[..., seen_by_all:].masked_fill_(hidden, -torch.inf)
        if self.window is not None:
            beyond = min(columns, queries - self.window - ahead)
            if beyond > 0:
                hidden = self._hidden(queries, beyond, ahead)
                scores[..., :beyond].masked_fill_(hidden, -torch.inf)

    def _hidden(self, queries: int, columns: int, ahead: int) -> Tensor:
        """[queries, 1, columns]: whether the query may not see the key."""
        key = (queries, columns, ahead)
        if key not in self.hidden:
            distance = torch.arange(queries)[:, None] - torch.arange(columns) - ahead
            hidden = (distance < 0) | (distance >= (self.window or math.inf))
            self.hidden[key] = hidden[:, None]
        return self.hidden[key]


def _scores(q: Tensor, k: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * q @ k.T: [rows, keys]; may use the memory of `out`."""
    if q.dtype == torch.float32 and has_onednn():
        return linear(q * scale, k)
    if out is None:
        out = torch.empty(len(q), len(k), dtype=q.dtype)
    return torch.addmm(out, q, k.T, beta=0, alpha=scale, out=out)


def _mix(weights: Tensor, v: Tensor) -> Tensor:
    """weights @ v: [rows, dim]."""
    if v.dtype == torch.float32 and has_onednn():
        return linear(weights, v.T)
    return weights @ v


def has_onednn() -> bool:
    """Whether oneDNN's float32 product is available; torch has it only as a fused linear layer."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias by oneDNN's float32 product."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def fast_bfloat16() -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones on this CPU."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
