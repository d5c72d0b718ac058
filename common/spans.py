"""Sequence-parallel arithmetic on token positions: no tensors, no I/O."""

import itertools
from typing import NamedTuple


class Span(NamedTuple):
    """Token positions `start <= position < stop`; empty when they are equal."""

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


def zigzag(tokens: int, ranks: int) -> list[tuple[Span, ...]]:
    """Deal `2 * ranks` chunks so that causal work is even: rank i gets chunks i and 2*ranks-1-i.

    Every position is dealt exactly once, for any `tokens >= 0`; a rank's spans are in rising order,
    and may be empty when the prompt is shorter than the group.
    Source: zigzag ring attention, as in "Striped Attention" (arXiv 2311.09431) and Llama 3's CP.
    """
    if ranks == 1:
        return [(Span(0, tokens),)]
    chunks = even_split(tokens, 2 * ranks)
    return [(chunks[rank], chunks[2 * ranks - 1 - rank]) for rank in range(ranks)]


def paged_split(tokens: int, weights: list[int], page_tokens: int) -> list[Span]:
    """Cut `[0, tokens)` at page boundaries in proportion to `weights`; the last takes the rest."""
    total = sum(weights)
    pages = -(-tokens // page_tokens)
    edges = [0]
    for taken in range(1, len(weights)):
        share = pages * sum(weights[:taken]) // total
        edges.append(min(tokens, share * page_tokens))
    edges.append(tokens)
    return [Span(a, b) for a, b in itertools.pairwise(edges)]


def pages_for(tokens: int, page_tokens: int) -> int:
    """How many pages hold `tokens` tokens."""
    return -(-tokens // page_tokens)
