"""Bytes that each prefill method sends, rank by rank: the formulas behind predicted costs."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Self

from sps2.common.errors import Invalid
from sps2.common.messages import Method, Scheme, Selection
from sps2.common.model.config import ModelConfig
from sps2.common.spans import Span, even_split
from sps2.common.words import counted

BLOCK = 64
"""Tokens that share scales in 8 bits, as in `kernels/kv_quantize.py`."""
COARSE_SHARE = 0.53
"""Bytes of a block in 4 bits, as a share of one in 8."""
EXPECTED_KEPT = 0.6
"""Share of blocks that CSA is expected to send; the real one depends on the text."""
PACKED = 11 / 16
"""Bytes of bfloat16 tensors that are packed losslessly, as a share of the plain ones: a little more
than they are, so that no part of a byte is left of any head."""
EXPECTED_FINE = 0.3
"""Share of the sent blocks that are in 8 bits, if they are packed."""
EXPECTED_BITS = 2.5
"""Bits of a number of the sent blocks, if they are coded."""
DEPOSIT_BITS = 6.5
"""Bits of a number on its way to the shard that keeps it, if it is coded."""

Spans = Sequence[tuple[Span, ...]]


class PrefixQuery(NamedTuple):
    """Queries of a rank, and the spans of the cached prefix on a shard that it sends them to."""

    queries: Sequence[Span]
    keys: Sequence[Span]


class Loads(NamedTuple):
    """What the ranks of a group send each other in one prefill, over all layers, in bytes.

    by_rank: over the busier direction of each rank's link.
    """

    by_purpose: dict[str, int]
    by_rank: tuple[float, ...]


def loads(
    config: ModelConfig, itemsize: int, scheme: Scheme, spans: Spans, processes: int = 1
) -> Loads:
    """Everything that the ranks of a group send each other.

    Args:
        itemsize: bytes of an activation.
        spans: by rank; with `gather` and `csa` each has one, in order of rank.
        processes: processes of a shard; each sends the same number of bytes.
    """
    if len(spans) == 1:
        return Loads({}, (0.0,))
    sizes, tally = _Sizes.of(config, itemsize, scheme), _Tally(len(spans))
    match scheme.method:
        case "gather":
            _gather(sizes, spans, tally)
        case "pass_q":
            _pass_q(sizes, spans, tally)
        case "csa":
            _csa(sizes, spans, scheme.selection, processes, tally)
            return tally.loads(1)
        case "ring" | "ulysses" | "usp":
            _usp(sizes, scheme.ulysses, spans, tally)
    return tally.loads(processes)


def prefix_transfers(
    config: ModelConfig, itemsize: int, prefix_queries: Sequence[PrefixQuery]
) -> dict[str, int]:
    """Bytes of queries to a cached prefix and of the states that come back, by purpose."""
    sizes, windows = _Sizes(config, itemsize, "auto"), Counter(config.windows)
    moved = Counter[str]()
    for queries, keys in prefix_queries:
        last = max(span.stop for span in keys)
        for window, layers in windows.items():
            end = queries[-1].stop if window is None else last + window - 1
            rows = sum((span & Span(0, end)).tokens for span in queries)
            moved["prefix_q"] += layers * sizes.q(rows, config.heads)
            moved["prefix_state"] += layers * sizes.state(rows, config.heads)
    return dict(moved)


class _Tally:
    """Bytes sent and received by every rank, and the total by purpose."""

    def __init__(self, ranks: int) -> None:
        self.out = [0.0] * ranks
        self.into = [0.0] * ranks
        self.purposes: Counter[str] = Counter()

    def loads(self, factor: int) -> Loads:
        purposes = {each: nbytes * factor for each, nbytes in self.purposes.items()}
        return Loads(
            purposes, tuple(max(each) * factor for each in zip(self.out, self.into, strict=True))
        )


class _Sizes:
    """Bytes of q, of keys and values, and of states, for a number of tokens.

    Args:
        packed: share of the bytes of bfloat16 tensors that is left of them on their way.
    """

    def __init__(
        self, config: ModelConfig, itemsize: int, kv_transfer_dtype: str, packed: float = 1.0
    ) -> None:
        self.config = config
        self.itemsize = itemsize
        self._kv_transfer_dtype = kv_transfer_dtype
        self._packed = packed

    @classmethod
    def of(cls, config: ModelConfig, itemsize: int, scheme: Scheme) -> Self:
        """Of what is exchanged by a scheme."""
        packed = PACKED if scheme.lossless is not None and scheme.method != "csa" else 1.0
        return cls(config, itemsize, scheme.kv_transfer_dtype, packed)

    def kv(self, tokens: int, kv_heads: int) -> int:
        """Bytes of keys and values in one layer."""
        dim = self.config.head_dim
        if self._kv_transfer_dtype == "auto":
            return round(tokens * kv_heads * 2 * dim * self.itemsize * self._packed)
        blocks = -(-tokens // BLOCK)
        return blocks * kv_heads * (2 * BLOCK * dim + 4 * dim + 4 * BLOCK)

    def q(self, tokens: int, heads: int) -> int:
        return round(tokens * heads * self.config.head_dim * self.itemsize * self._packed)

    def state(self, tokens: int, heads: int) -> int:
        return self.q(tokens, heads) + 4 * tokens * heads


def _usp(sizes: _Sizes, columns: int, spans: Spans, tally: _Tally) -> None:
    config = sizes.config
    layers, group = config.layers, config.heads // config.kv_heads
    rows = len(spans) // columns
    shares = even_split(config.heads, columns)
    kv_heads = [-(-heads.stop // group) - heads.start // group for heads in shares]
    tokens = [_tokens(each) for each in spans]
    kv = [sizes.kv(each, 1) for each in tokens]
    in_row = [sum(tokens[row * columns : (row + 1) * columns]) for row in range(rows)]
    kv_in_row = [sum(kv[row * columns : (row + 1) * columns]) for row in range(rows)]
    kv_of_row = [sizes.kv(each, 1) for each in in_row]
    for rank in range(len(spans)):
        row, column = divmod(rank, columns)
        own, own_kv = shares[column].tokens, kv_heads[column]
        others, others_kv = config.heads - own, sum(kv_heads) - own_kv
        missing = in_row[row] - tokens[rank]
        if columns > 1:
            q = layers * sizes.q(tokens[rank], others)
            keys = layers * kv[rank] * others_kv
            state = layers * sizes.state(tokens[rank], others)
            tally.purposes.update(q=q, kv=keys, state=state)
            tally.out[rank] += q + keys + layers * sizes.state(missing, own)
            tally.into[rank] += (
                state
                + layers * sizes.q(missing, own)
                + layers * own_kv * (kv_in_row[row] - kv[rank])
            )
        if rows > 1:
            below = (row + 1) % rows
            carried = layers * own_kv * (sum(kv_of_row) - kv_of_row[below])
            tally.purposes["kv"] += carried
            tally.out[rank] += carried
            tally.into[below * columns + column] += carried


def _gather(sizes: _Sizes, spans: Spans, tally: _Tally) -> None:
    own = [span for (span,) in spans]
    stops = [span.stop for span in own]
    whole = [sizes.kv(span.tokens, sizes.config.kv_heads) for span in own]
    before = list(accumulate(whole, initial=0))
    for window, layers in Counter(sizes.config.windows).items():
        receivers = [0] * (len(own) + 1)  # difference to the number of the owner before
        for target, span in enumerate(own):
            start = 0 if window is None else max(0, span.start - window + 1)
            first = bisect_right(stops, start)
            if first >= target:
                continue
            part = layers * sizes.kv(
                stops[first] - max(own[first].start, start), sizes.config.kv_heads
            )
            wholly = layers * (before[target] - before[first + 1])
            tally.out[first] += part
            tally.into[target] += part + wholly
            tally.purposes["kv"] += part + wholly
            receivers[first + 1] += 1
            receivers[target] -= 1
        for owner, number in enumerate(accumulate(receivers[:-1])):
            tally.out[owner] += layers * number * whole[owner]


def _pass_q(sizes: _Sizes, spans: Spans, tally: _Tally) -> None:
    heads = sizes.config.heads
    keys = [[span for span in each if span.tokens] for each in spans]
    order = sorted((held[0].start, owner) for owner, held in enumerate(keys) if held)
    starts = [start for start, _ in order]
    for window, layers in Counter(sizes.config.windows).items():
        asked_q, asked_state = [0] * (len(order) + 1), [0] * (len(order) + 1)
        for asker, queries in enumerate(spans):
            tokens = _tokens(queries)
            q, state = layers * sizes.q(tokens, heads), layers * sizes.state(tokens, heads)
            stop = max(span.stop for span in queries)
            if window is None:  # every rank with keys before the last query, and itself if it has
                seen = bisect_left(starts, stop)
                asked_q[0] += q
                asked_q[seen] -= q
                asked_state[0] += state
                asked_state[seen] -= state
                own = bool(keys[asker])
                tally.into[asker] -= own * q
                tally.out[asker] -= own * state
                others = seen - own
            else:
                start = max(0, min(span.start for span in queries) - window + 1)
                owners = [
                    owner
                    for owner, held in enumerate(keys)
                    if owner != asker and any(s.start < stop and s.stop > start for s in held)
                ]
                for owner in owners:
                    tally.into[owner] += q
                    tally.out[owner] += state
                others = len(owners)
            tally.out[asker] += others * q
            tally.into[asker] += others * state
            tally.purposes.update(q=others * q, state=others * state)
        for (_, owner), q, state in zip(
            order, accumulate(asked_q), accumulate(asked_state), strict=False
        ):
            tally.into[owner] += q
            tally.out[owner] += state


def _csa(
    sizes: _Sizes, spans: Spans, selection: Selection | None, processes: int, tally: _Tally
) -> None:
    config, ranks = sizes.config, len(spans)
    selection = selection or Selection((), ())
    kept = [_blocks(sizes, _tokens(each), selection) for each in spans]
    rows = [_tokens(each) * selection.probes / 128 for each in spans]
    probes = [each * config.heads * (config.head_dim / 2 + 1 + 2) for each in rows]
    sums = [each * config.heads * 2 * (selection.rounds > 1) for each in rows]
    kept, probes, sums = (
        [config.layers * each * processes for each in by_rank] for by_rank in (kept, probes, sums)
    )
    for rank in range(ranks):
        later = ranks - 1 - rank
        tally.out[rank] += kept[rank] * later + probes[rank] * rank + sum(sums[rank + 1 :])
        tally.into[rank] += sum(kept[:rank]) + sums[rank] * rank + sum(probes[rank + 1 :])
        tally.purposes["kv"] += round(kept[rank]) * later
        tally.purposes["probe"] += (round(probes[rank]) + round(sums[rank])) * rank


def _blocks(sizes: _Sizes, tokens: int, selection: Selection) -> float:
    """Expected bytes of the blocks of `tokens` tokens that CSA sends to one rank, in one layer."""
    config = sizes.config
    if selection.steps is not None:
        numbers = tokens * config.kv_heads * 2 * config.head_dim
        return EXPECTED_KEPT * numbers * EXPECTED_BITS / 8
    whole = sizes.kv(tokens, config.kv_heads) * EXPECTED_KEPT
    return whole * (EXPECTED_FINE + (1 - EXPECTED_FINE) * COARSE_SHARE)


def _tokens(spans: tuple[Span, ...]) -> int:
    return sum(span.tokens for span in spans)


def migration_pays_after(config: ModelConfig, itemsize: int, held: Sequence[int]) -> int | None:
    """How many tokens a request must decode before moving its KV once costs less than moving q.

    Moving KV costs in proportion to the tokens that holders have. Moving q costs a query and a
    state per holder and generated token, whatever the context. None if the owner has all KV.

    Args:
        held: tokens at each holder, without the owner.
    """
    if not held:
        return None
    sizes = _Sizes(config, itemsize, "auto")
    step = len(held) * (sizes.q(1, config.heads) + sizes.state(1, config.heads))
    return -(-sum(sizes.kv(tokens, config.kv_heads) for tokens in held) // step)


def deposit_bytes(config: ModelConfig, itemsize: int, scheme: Scheme) -> float:
    """Bytes of a token's keys and values on their way to the shard that keeps them."""
    if scheme.selection is not None and scheme.selection.steps is not None:
        return config.kv_bytes(1) * DEPOSIT_BITS / 8
    return config.kv_bytes(itemsize) * (1.0 if scheme.lossless is None else PACKED)


def columns_for(config: ModelConfig, method: Method, ranks: int) -> list[int]:
    """Into how many columns a method can divide `ranks` ranks; see `Scheme.ulysses`.

    Raises:
        Invalid: they cannot be divided into rows and columns.
    """
    if method == "ulysses":
        return [ranks]
    if method != "usp":
        return [1]
    columns = [each for each in range(2, ranks) if ranks % each == 0]
    if not columns:
        raise Invalid(
            f"usp needs an sp_degree that is a product, as 4, 6 or 8; {ranks} is not",
            "sps2.sp_degree",
            "invalid_value",
        )
    return [each for each in columns if each <= config.heads] or columns[:1]


def check_degree(config: ModelConfig, scheme: Scheme, ranks: int) -> None:
    """Raise Invalid if `ranks` ranks cannot run the method with the model's heads."""
    columns = scheme.ulysses
    if columns > config.heads:
        raise Invalid(
            f"{scheme.method} splits {counted(config.heads, 'head')} among shards, which "
            f"{columns} are too many for: ask for an sp_degree of at most {config.heads}, or "
            "another method",
            "sps2.sp_degree",
            "invalid_value",
        )
    if ranks % columns:
        raise Invalid(
            f"{counted(ranks, 'shard')} cannot be split into rows of {columns}",
            "sps2.sp_degree",
            "invalid_value",
        )
