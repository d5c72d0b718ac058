"""Arithmetic on spans of token positions, for sequence parallelism; no tensors, no I/O."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Token positions `start <= position < stop`; empty if both are equal."""

    start: int
    stop: int

    def __and__(self, other: "Span") -> "Span":
        """The positions in both; empty spans collapse at the larger start."""
        start = max(self.start, other.start)
        return Span(start, max(start, min(self.stop, other.stop)))

    @property
    def tokens(self) -> int:
        return self.stop - self.start


def even_split(tokens: int, parts: int) -> list[Span]:
    """Cut `[0, tokens)` into `parts` consecutive spans whose lengths differ by at most one."""
    edges = [tokens * part // parts for part in range(parts + 1)]
    return [Span(a, b) for a, b in itertools.pairwise(edges)]


def zigzag(tokens: int, rows: int, columns: int = 1) -> list[tuple[Span, ...]]:
    """Assign `2 * rows` chunks so that causal work is even: row i gets chunks i and 2*rows-1-i.

    Each chunk is cut evenly among the ranks of its row, rank = row * columns + column. Every
    position is assigned exactly once, for any `tokens >= 0`; a rank's spans are in rising order,
    and may be empty when the prompt is short.
    Source: zigzag ring attention, as in "Striped Attention" (arXiv 2311.09431) and Llama 3's CP.
    """
    if rows == 1:
        return [(span,) for span in even_split(tokens, columns)]
    chunks = even_split(tokens, 2 * rows)
    return [
        pair
        for row in range(rows)
        for pair in zip(
            _cut(chunks[row], columns), _cut(chunks[2 * rows - 1 - row], columns), strict=True
        )
    ]


def consecutive(
    tokens: int, ranks: int, pair_cost: float, align: int = 1, speeds: Sequence[float] = ()
) -> list[tuple[Span, ...]]:
    """Consecutive spans, one per rank, with lengths that make the time of causal work even.

    Args:
        tokens: at least `ranks * align`.
        pair_cost: cost of attending to one key, relative to all other costs of a token.
        align: spans begin at multiples of it.
        speeds: work per time of each rank; empty if all are equally fast.
    """
    done: Sequence[float] = list(itertools.accumulate(speeds)) or range(1, ranks + 1)

    def cost(x: float) -> float:
        return x + pair_cost * x * x / 2

    def tokens_for(cost: float) -> float:
        return (math.sqrt(1 + 2 * pair_cost * cost) - 1) / pair_cost if pair_cost else cost

    edges = [0]
    for rank in range(1, ranks):
        ideal = tokens_for(cost(tokens) * done[rank - 1] / done[-1])
        least, most = edges[-1] + align, ((tokens - 1) // align - (ranks - 1 - rank)) * align
        edges.append(max(least, min(round(ideal / align) * align, most)))
    edges.append(tokens)
    return [(Span(a, b),) for a, b in itertools.pairwise(edges)]


def fits(tokens: int, room: Sequence[int], align: int = 1) -> bool:
    """Whether consecutive spans that begin at multiples of `align` can fit, one in each room."""
    most = _blocks(tokens, room, align)
    return min(most) > 0 and sum(most) >= pages_for(tokens, align)


def within(
    spans: Sequence[tuple[Span, ...]], room: Sequence[int], align: int = 1
) -> list[tuple[Span, ...]]:
    """Shorten spans of `consecutive` to fit their rooms; the others get the excess.

    Each gets a part in proportion to the room that it has left.

    Args:
        room: tokens for each span; together they suffice (`fits`).
        align: spans begin at multiples of it, before and after.
    """
    tokens = spans[-1][0].stop
    most = _blocks(tokens, room, align)
    blocks = [pages_for(span.tokens, align) for (span,) in spans]
    kept = [min(pair) for pair in zip(blocks, most, strict=True)]
    spare = [each - used for each, used in zip(most, kept, strict=True)]
    excess = sum(blocks) - sum(kept)
    edges = [0]
    for index in range(1, len(spans)):
        moved = excess * sum(spare[:index]) // max(1, sum(spare))
        edges.append((sum(kept[:index]) + moved) * align)
    edges.append(tokens)
    return [(Span(a, b),) for a, b in itertools.pairwise(edges)]


def _blocks(tokens: int, room: Sequence[int], align: int) -> list[int]:
    """The most blocks of `align` tokens in each room; the last room's last block may be short."""
    *others, last = room
    short = (tokens - 1) % align + 1
    return [*(each // align for each in others), max(0, (last - short) // align + 1)]


def _cut(span: Span, parts: int) -> list[Span]:
    return [
        Span(span.start + piece.start, span.start + piece.stop)
        for piece in even_split(span.tokens, parts)
    ]


def paged_split(tokens: int, weights: list[int], page_tokens: int) -> list[Span]:
    """Cut `[0, tokens)` at page boundaries in proportion to `weights`; the last gets the rest."""
    total = sum(weights)
    pages = -(-tokens // page_tokens)
    edges = [0]
    for part in range(1, len(weights)):
        share = pages * sum(weights[:part]) // total
        edges.append(min(tokens, share * page_tokens))
    edges.append(tokens)
    return [Span(a, b) for a, b in itertools.pairwise(edges)]


def page_numbers(spans: Iterable[Span], page_tokens: int) -> Iterator[int]:
    """The numbers of the pages in spans of whole pages."""
    for span in spans:
        yield from range(span.start // page_tokens, span.stop // page_tokens)


def pages_for(tokens: int, page_tokens: int) -> int:
    """How many pages hold `tokens` tokens."""
    return -(-tokens // page_tokens)
