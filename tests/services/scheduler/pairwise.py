"""Transfers between every two ranks, one by one: what `traffic.loads` sums up."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sps2.common.messages import Scheme, Selection
from sps2.common.model.config import ModelConfig
from sps2.common.spans import Span, even_split
from sps2.services.scheduler.traffic import (
    COARSE_SHARE,
    EXPECTED_BITS,
    EXPECTED_FINE,
    EXPECTED_KEPT,
    Spans,
    _Sizes,
)


class Transfer(NamedTuple):
    """Payload from one rank to another in one prefill, over all layers."""

    source: int
    target: int
    purpose: str
    nbytes: float


def transfers(config: ModelConfig, itemsize: int, scheme: Scheme, spans: Spans) -> list[Transfer]:
    """Everything that the ranks of a group send each other.

    Args:
        itemsize: bytes of an activation.
        spans: by rank.
    """
    if len(spans) == 1:
        return []
    sizes = _Sizes.of(config, itemsize, scheme)
    by_method: dict[str, Callable[[], Iterator[Transfer]]] = {
        "ring": lambda: _usp(sizes, scheme.ulysses, spans),
        "ulysses": lambda: _usp(sizes, scheme.ulysses, spans),
        "usp": lambda: _usp(sizes, scheme.ulysses, spans),
        "gather": lambda: _gather(sizes, spans),
        "pass_q": lambda: _pass_q(sizes, spans),
        "csa": lambda: _csa(sizes, spans, scheme.selection),
    }
    return list(by_method[scheme.method]())


def by_purpose(moved: Sequence[Transfer]) -> dict[str, int]:
    """Bytes in all, by purpose."""
    totals: Counter[str] = Counter()
    for each in moved:
        totals[each.purpose] += round(each.nbytes)
    return dict(totals)


def busiest(moved: Sequence[Transfer], ranks: int) -> float:
    """Bytes over the busiest direction of the busiest rank's link."""
    out, into = [0.0] * ranks, [0.0] * ranks
    for each in moved:
        out[each.source] += each.nbytes
        into[each.target] += each.nbytes
    return max(*out, *into)


def _usp(sizes: _Sizes, columns: int, spans: Spans) -> Iterator[Transfer]:
    config = sizes.config
    layers, group = config.layers, config.heads // config.kv_heads
    rows = len(spans) // columns
    shares = even_split(config.heads, columns)
    tokens = [_tokens(each) for each in spans]
    for rank in range(len(spans)):
        row, column = divmod(rank, columns)
        for other, heads in enumerate(shares):
            kv_heads = -(-heads.stop // group) - heads.start // group
            target = row * columns + other
            if target == rank:
                below = (row + 1) % rows * columns + column
                carried = sum(
                    sizes.kv(sum(tokens[r * columns : (r + 1) * columns]), kv_heads)
                    for r in range(rows)
                    if r != (row + 1) % rows
                )
                if rows > 1:
                    yield Transfer(rank, below, "kv", layers * carried)
                continue
            yield Transfer(rank, target, "q", layers * sizes.q(tokens[rank], heads.tokens))
            yield Transfer(rank, target, "kv", layers * sizes.kv(tokens[rank], kv_heads))
            yield Transfer(target, rank, "state", layers * sizes.state(tokens[rank], heads.tokens))


def _gather(sizes: _Sizes, spans: Spans) -> Iterator[Transfer]:
    for owner, target in _pairs(spans):
        nbytes = sum(
            sizes.kv(_needed(spans[owner], spans[target], window), sizes.config.kv_heads)
            for window in sizes.config.windows
        )
        if nbytes:
            yield Transfer(owner, target, "kv", nbytes)


def _pass_q(sizes: _Sizes, spans: Spans) -> Iterator[Transfer]:
    heads = sizes.config.heads
    for owner, asker in _pairs(spans):
        tokens = _tokens(spans[asker])
        layers = sum(
            _needed(spans[owner], spans[asker], window) > 0 for window in sizes.config.windows
        )
        if layers:
            yield Transfer(asker, owner, "q", layers * sizes.q(tokens, heads))
            yield Transfer(owner, asker, "state", layers * sizes.state(tokens, heads))


def _csa(sizes: _Sizes, spans: Spans, selection: Selection | None) -> Iterator[Transfer]:
    config = sizes.config
    selection = selection or Selection((), ())
    for owner in range(len(spans)):
        for consumer in range(owner + 1, len(spans)):
            rows = _tokens(spans[consumer]) * selection.probes / 128
            probe = rows * config.heads * (config.head_dim / 2 + 1 + 2)
            sums = rows * config.heads * 2
            tokens = _tokens(spans[owner])
            if selection.steps is None:
                kept = sizes.kv(tokens, config.kv_heads) * EXPECTED_KEPT
                kept *= EXPECTED_FINE + (1 - EXPECTED_FINE) * COARSE_SHARE
            else:
                kept = tokens * EXPECTED_KEPT * 2 * config.kv_heads * config.head_dim
                kept *= EXPECTED_BITS / 8
            yield Transfer(consumer, owner, "probe", config.layers * probe)
            if selection.rounds > 1:
                yield Transfer(owner, consumer, "probe", config.layers * sums)
            yield Transfer(owner, consumer, "kv", config.layers * kept)


def _pairs(spans: Spans) -> Iterator[tuple[int, int]]:
    for owner in range(len(spans)):
        for other in range(len(spans)):
            if owner != other:
                yield owner, other


def _needed(keys: tuple[Span, ...], queries: tuple[Span, ...], window: int | None) -> int:
    """How many of the keys some query may see."""
    stop = max(span.stop for span in queries)
    start = 0 if window is None else max(0, min(span.start for span in queries) - window + 1)
    return sum((span & Span(start, stop)).tokens for span in keys)


def _tokens(spans: tuple[Span, ...]) -> int:
    return sum(span.tokens for span in spans)
