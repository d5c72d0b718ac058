"""What each prefill method sends: the formulas, rank by rank, from which costs are predicted."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sps2.common.errors import Invalid
from sps2.common.messages import Scheme, Selection
from sps2.common.model.config import ModelConfig
from sps2.common.spans import Span, even_split

BLOCK = 64
"""Tokens that share scales in 8 bits, as in `kernels/quantize.py`."""
COARSE_SHARE = 0.53
"""Bytes of a block in 4 bits against one in 8."""
EXPECTED_KEPT = 0.6
"""Of the blocks that CSA could move; only a prediction, the choice depends on the text."""
EXPECTED_FINE = 0.3
"""Of the kept blocks, in 8 bits."""

Spans = Sequence[tuple[Span, ...]]


class Transfer(NamedTuple):
    """Payload from one rank to another in one prefill, over all layers."""

    source: int
    target: int
    purpose: str
    nbytes: float


class Asked(NamedTuple):
    """Queries of a rank, and what of the tokens before its group's lies on a shard that it asks."""

    queries: Sequence[Span]
    keys: Sequence[Span]


def transfers(config: ModelConfig, itemsize: int, scheme: Scheme, spans: Spans) -> list[Transfer]:
    """Everything that the ranks of a group send each other.

    Args:
        itemsize: bytes of an activation.
        spans: by rank.
    """
    if len(spans) == 1:
        return []
    sizes = _Sizes(config, itemsize, scheme.wire)
    by_method: dict[str, Callable[[], Iterator[Transfer]]] = {
        "ring": lambda: _usp(sizes, scheme.ulysses, spans),
        "ulysses": lambda: _usp(sizes, scheme.ulysses, spans),
        "usp": lambda: _usp(sizes, scheme.ulysses, spans),
        "gather": lambda: _gather(sizes, spans),
        "pass_q": lambda: _pass_q(sizes, spans),
        "csa": lambda: _csa(sizes, spans, scheme.selection),
    }
    return list(by_method[scheme.method]())


def prefix_transfers(config: ModelConfig, itemsize: int, asked: Sequence[Asked]) -> dict[str, int]:
    """Bytes of questions about a prefix and of their answers, by purpose."""
    sizes = _Sizes(config, itemsize, "plain")
    moved = Counter[str]()
    for queries, keys in asked:
        last = max(span.stop for span in keys)
        for window in config.windows:
            end = queries[-1].stop if window is None else last + window - 1
            rows = sum((span & Span(0, end)).tokens for span in queries)
            moved["prefix_q"] += sizes.q(rows, config.heads)
            moved["prefix_state"] += sizes.state(rows, config.heads)
    return dict(moved)


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


class _Sizes:
    """Bytes of tokens of q, of keys and values, of states."""

    def __init__(self, config: ModelConfig, itemsize: int, wire: str) -> None:
        self.config = config
        self.itemsize = itemsize
        self._wire = wire

    def kv(self, tokens: int, kv_heads: int) -> int:
        """Of one layer."""
        dim = self.config.head_dim
        if self._wire == "plain":
            return tokens * kv_heads * 2 * dim * self.itemsize
        blocks = -(-tokens // BLOCK)
        return blocks * kv_heads * (2 * BLOCK * dim + 4 * dim + 4 * BLOCK)

    def q(self, tokens: int, heads: int) -> int:
        return tokens * heads * self.config.head_dim * self.itemsize

    def state(self, tokens: int, heads: int) -> int:
        return self.q(tokens, heads) + 4 * tokens * heads


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
            probe = rows * config.heads * (config.head_dim + 2 + 2)
            sums = rows * config.heads * 2
            kept = sizes.kv(_tokens(spans[owner]), config.kv_heads) * EXPECTED_KEPT
            kept *= EXPECTED_FINE + (1 - EXPECTED_FINE) * COARSE_SHARE
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


def migration_pays_after(config: ModelConfig, itemsize: int, held: Sequence[int]) -> int | None:
    """How many tokens a request must decode before moving its KV once costs less than moving q.

    A holder's KV moves at the cost of its tokens; q goes out and a state comes back to every holder
    for every token, whatever the context. None where all KV lies at the owner.

    Args:
        held: tokens at each holder, the owner not counted.
    """
    if not held:
        return None
    sizes = _Sizes(config, itemsize, "plain")
    step = len(held) * (sizes.q(1, config.heads) + sizes.state(1, config.heads))
    return -(-sum(sizes.kv(tokens, config.kv_heads) for tokens in held) // step)


def check_degree(config: ModelConfig, scheme: Scheme, ranks: int) -> None:
    """Raise Invalid if the method cannot be done by so many ranks with the model's heads."""
    columns = scheme.ulysses
    if columns > config.heads:
        raise Invalid(
            f"{scheme.method} splits heads among {columns} shards; there are {config.heads}: "
            f"ask for an sp_degree of at most {config.heads}, or another method",
            "sps2",
        )
    if ranks % columns:
        raise Invalid(f"{ranks} shards cannot be dealt to rows of {columns}", "sps2")
