"""Attention over keys that arrive in pieces, by spans of positions."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.common.spans import Span
from sps2.kernels import Run, State, attention, empty_state, merge
from sps2.kernels.csa_scores import Blocks, attend_blocks


class Rows(NamedTuple):
    """A span of positions, and the rows of a tensor that hold it."""

    span: Span
    rows: slice


def rows_of(spans: Iterable[Span]) -> list[Rows]:
    """The rows of spans that lie one after the other in a tensor; consecutive spans are joined."""
    found: list[Rows] = []
    first = 0
    for span in spans:
        if found and found[-1].span.stop == span.start:
            whole = Span(found[-1].span.start, span.stop)
            found[-1] = Rows(whole, slice(found[-1].rows.start, first + span.tokens))
        elif span.tokens:
            found.append(Rows(span, slice(first, first + span.tokens)))
        first += span.tokens
    return found


def visible(q_span: Span, k_span: Span, window: int | None) -> bool:
    """Whether any query of one span sees any key of the other."""
    before = k_span.start < q_span.stop
    return before and (window is None or k_span.stop > q_span.start - window + 1)


def needed(keys: Sequence[Rows], queries: Sequence[Rows], window: int | None) -> list[Rows]:
    """The parts of `keys` that some query sees: not in its future, not beyond the window."""
    if not queries:
        return []
    stop = max(span.stop for span, _ in queries)
    start = 0 if window is None else min(span.start for span, _ in queries) - window + 1
    found = []
    for span, rows in keys:
        seen = span & Span(max(0, start), stop)
        if seen.tokens:
            first = rows.start + seen.start - span.start
            found.append(Rows(seen, slice(first, first + seen.tokens)))
    return found


def cut(x: Tensor, rows: Sequence[Rows]) -> Tensor:
    """These rows of x, one after the other."""
    parts = [x[each.rows] for each in rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def in_blocks(rows: Iterable[Rows], most: int) -> list[Rows]:
    """The same rows, in blocks of at most `most`."""
    return [
        Rows(
            Span(span.start + first, min(span.start + first + most, span.stop)),
            slice(lie.start + first, min(lie.start + first + most, lie.stop)),
        )
        for span, lie in rows
        for first in range(0, span.tokens, most)
    ]


def by_rows(seen: Sequence["Seen"]) -> State:
    """The state of all rows, joined from states of some rows each."""
    if len(seen) == 1:
        return seen[0].state()
    outs, lses = zip(*(each.state() for each in seen), strict=True)
    return State(torch.cat(outs), torch.cat(lses))


def by_heads(seen: Iterable["Seen"]) -> State:
    """The state of all heads, joined from states of the same rows with some heads each."""
    outs, lses = zip(*(each.state() for each in seen), strict=True)
    return State(torch.cat(outs, 1), torch.cat(lses, 1))


class Seen:
    """The attention state of queries over the keys so far; every piece of keys is merged into it.

    Args:
        q: [tokens, heads, dim].
        rows: the positions of its rows.
    """

    def __init__(self, q: Tensor, rows: Sequence[Rows], scale: float, window: int | None) -> None:
        self._q = q
        self._queries = _runs(rows)
        self._scale = scale
        self._window = window
        self._state: State | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the queries."""
        return self._q.dtype

    def attend(self, k: Tensor, v: Tensor, rows: Sequence[Rows]) -> None:
        """Attend to keys and values, [tokens, kv_heads, dim], at the positions of `rows`."""
        self._attend(k, v, _runs(rows), self._window)

    def attend_blocks(self, blocks: Sequence[Blocks]) -> None:
        """Attend to blocks that every query sees, in any order; q has the heads of one KV head."""
        self._state = attend_blocks(self._q, blocks, self._scale, self._state)

    def add(self, state: State) -> None:
        """Merge a state of all rows that another rank or process computed."""
        self._state = merge(self._so_far(), state)

    def state(self) -> State:
        """The state of all rows over all keys so far; `out` has the dtype of the queries."""
        out, lse = self._so_far()
        return State(out.to(self.dtype), lse)

    def _attend(self, k: Tensor, v: Tensor, keys: list[Run], window: int | None) -> None:
        self._state = attention(
            self._q,
            k,
            v,
            queries=self._queries,
            keys=keys,
            scale=self._scale,
            window=window,
            state=self._state,
        )

    def _so_far(self) -> State:
        tokens, heads, dim = self._q.shape
        return self._state or empty_state(tokens, heads, dim, self._q.device)


def _runs(rows: Sequence[Rows]) -> list[Run]:
    return [Run(lie.start, span.start, span.tokens) for span, lie in rows]
