"""Attention over keys that come in pieces, by spans of positions."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.common.spans import Span
from sps2.kernels import State, attention, empty_state, merge_many


class Rows(NamedTuple):
    """A span of positions, and the rows of a tensor that hold it."""

    span: Span
    rows: slice


def rows_of(spans: Iterable[Span]) -> list[Rows]:
    """Spans whose rows lie one after the other; consecutive ones are put together."""
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
    """Of `keys` the stretches that some query may see: not in its future, not beyond the window."""
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
    """Those rows of x, one after the other."""
    parts = [x[each.rows] for each in rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def by_heads(seen: Iterable["Seen"]) -> State:
    """The state of all heads, from those of the same rows with some heads each."""
    outs, lses = zip(*(each.state() for each in seen), strict=True)
    return State(torch.cat(outs, 1), torch.cat(lses, 1))


class Seen:
    """What queries have seen so far: a state for each piece of keys, merged in the end.

    Args:
        q: [tokens, heads, dim], whose rows are `rows`.
    """

    def __init__(self, q: Tensor, rows: Sequence[Rows], scale: float, window: int | None) -> None:
        self._q = q
        self._rows = rows
        self._scale = scale
        self._window = window
        self._states: list[list[State]] = [[] for _ in rows]

    @property
    def dtype(self) -> torch.dtype:
        """Of the queries."""
        return self._q.dtype

    def attend(self, k: Tensor, v: Tensor, rows: Sequence[Rows]) -> None:
        """Attend to keys and values, [tokens, kv_heads, dim], whose positions `rows` say."""
        for index, (q_span, queries) in enumerate(self._rows):
            for k_span, keys in rows:
                if visible(q_span, k_span, self._window):
                    state = attention(
                        self._q[queries],
                        k[keys],
                        v[keys],
                        q_start=q_span.start,
                        k_start=k_span.start,
                        scale=self._scale,
                        window=self._window,
                    )
                    self._states[index].append(state)

    def attend_past(self, k: Tensor, v: Tensor) -> None:
        """Attend to keys and values that every query sees, wherever they were."""
        for index, (_, queries) in enumerate(self._rows):
            q = self._q[queries]
            state = attention(q, k, v, q_start=len(k), k_start=0, scale=self._scale)
            self._states[index].append(state)

    def add(self, state: State) -> None:
        """Take in a state of all rows that somebody else computed."""
        for index, (_, rows) in enumerate(self._rows):
            self._states[index].append(State(state.out[rows], state.lse[rows]))

    def state(self) -> State:
        """Of all rows, over all keys so far."""
        _, heads, dim = self._q.shape
        parts = [
            merge_many(states)
            if states
            else empty_state(span.tokens, heads, dim, self._q.dtype, self._q.device)
            for (span, _), states in zip(self._rows, self._states, strict=True)
        ]
        if not parts:
            return empty_state(0, heads, dim, self._q.dtype, self._q.device)
        if len(parts) == 1:
            return parts[0]
        return State(torch.cat([each.out for each in parts]), torch.cat([p.lse for p in parts]))
