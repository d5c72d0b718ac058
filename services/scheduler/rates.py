"""Predicted seconds of prefills, from the rates of arithmetic and links."""

import math
from collections.abc import Sequence
from functools import partial
from operator import truediv

from sps2.common.messages import Scheme
from sps2.common.model.config import ModelConfig
from sps2.common.spans import Span
from sps2.services.scheduler.hardware import Hardware, Wire
from sps2.services.scheduler.traffic import EXPECTED_KEPT, Spans

IN_A_ROW = ("gather", "csa")
"""Methods whose ranks have one span each, in order of rank."""
EXPECTED_WORK = 0.65
"""CSA's expected work on earlier ranks' keys, the choice of blocks included, as a share of exact
attention's: docs/csa.md."""

CODED_A_SECOND = 100e6
"""Numbers that a shard codes in a second, or restores, as CSA's coded blocks: docs/csa.md."""


class Rates:
    """How long a model's arithmetic and its transfers take.

    A shard of speed 1 computes at the rate of the hardware, and has its link.

    Args:
        attention_rate: speed of attention against that of matrix products.
    """

    def __init__(self, config: ModelConfig, hardware: Hardware, attention_rate: float) -> None:
        self._config = config
        self._hardware = hardware
        rate = hardware.gflops * 1e9
        self.token_s = 2 * config.products / rate
        """Seconds of a token, without its attention."""
        self.pair_s = 4 * config.heads * config.head_dim * config.layers / (rate * attention_rate)
        """Seconds of the attention of one query to one key."""

    def alone_s(self, tokens: int, cached: int = 0) -> float:
        """Predicted seconds of one shard's arithmetic for `tokens` tokens behind cached ones."""
        return self.token_s * tokens + self.pair_s * tokens * (tokens / 2 + cached)

    def tokens_within(self, seconds: float, cached: int) -> int:
        """How many tokens behind cached ones one shard computes in so many predicted seconds."""
        linear_s = self.token_s + self.pair_s * cached
        root = math.sqrt(linear_s * linear_s + 2 * self.pair_s * seconds)
        return int(2 * seconds / (root + linear_s))

    def waits(self, scheme: Scheme, ranks: int, wires: Sequence[Wire] = ()) -> float:
        """Seconds in which ranks wait for each other, however their spans are."""
        if ranks == 1:
            return 0.0
        steps = 2 if scheme.method in IN_A_ROW else _steps(scheme, ranks)
        lag = max((wire.lag for wire in wires), default=1.0)
        return self._config.layers * steps * self._hardware.link_latency_s * lag

    def moving_s(self, by_rank: Sequence[float], wires: Sequence[Wire] = ()) -> float:
        """Seconds of the link that is busy the longest.

        Args:
            by_rank: bytes over the link of each rank.
            wires: of the ranks; empty if all are alike.
        """
        relative = map(truediv, by_rank, (wire.rate for wire in wires)) if wires else iter(by_rank)
        return max(relative) / (self._hardware.link_gbit * 1.25e8)

    def linear_s(self, spans: Spans) -> list[float]:
        """Seconds of each rank's arithmetic but attention."""
        return [self.token_s * sum(span.tokens for span in own) for own in spans]

    def attention_s(self, scheme: Scheme, spans: Spans, heads: int) -> list[float]:
        """Seconds of each rank's attention.

        Args:
            heads: of the whole model or of one process.
        """
        if len(spans) > 1 and scheme.method == "pass_q":  # the rank that has the keys attends
            tokens = max(own[-1].stop for own in spans)
            return [self.pair_s * sum(_queries(span, tokens) for span in own) for own in spans]
        seen = partial(_pairs, earlier=EXPECTED_WORK if scheme.method == "csa" else 1.0)
        attention = [self.pair_s * sum(map(seen, own)) for own in spans]
        if len(spans) == 1 or scheme.method in IN_A_ROW:
            return attention
        share = -(-heads // scheme.ulysses) * scheme.ulysses / heads
        return [sum(attention) / len(spans) * share] * len(spans)

    def coding_s(self, scheme: Scheme, spans: Spans) -> list[float]:
        """Seconds in which each rank codes the blocks that it sends and restores those it gets."""
        if scheme.selection is None or scheme.selection.steps is None:
            return [0.0] * len(spans)
        config = self._config
        tokens = [sum(span.tokens for span in own) for own in spans]
        a_token = EXPECTED_KEPT * config.layers * config.kv_heads * 2 * config.head_dim
        return [
            a_token * (each * (len(spans) - 1 - rank) + sum(tokens[:rank])) / CODED_A_SECOND
            for rank, each in enumerate(tokens)
        ]

    def own_gflop(self, scheme: Scheme, spans: Spans, heads: int) -> tuple[float, ...]:
        """Each rank's arithmetic, in GFLOP; empty if it depends on the text, as CSA's does.

        Attention counts as the products that take as long.
        """
        if scheme.method == "csa":
            return ()
        parts = zip(self.linear_s(spans), self.attention_s(scheme, spans, heads), strict=True)
        return tuple(self._hardware.gflops * sum(each) for each in parts)

    def seconds(
        self,
        scheme: Scheme,
        spans: Spans,
        by_rank: Sequence[float],
        heads: int,
        speeds: Sequence[float] = (),
        wires: Sequence[Wire] = (),
    ) -> float:
        """The predicted seconds of a prefill: arithmetic, and the transfers that it cannot hide.

        With consecutive spans no rank waits for a later one, so all arithmetic hides transfers. The
        other methods exchange within each layer: there only attention hides transfers, and never
        the first.

        Args:
            by_rank: bytes over the link of each rank.
            speeds: of the ranks; empty if all are as fast as the hardware.
            wires: of the ranks; empty if all have its link.
        """
        ranks, waits = len(spans), self.waits(scheme, len(spans), wires)
        linear, attention = self.linear_s(spans), self.attention_s(scheme, spans, heads)
        if speeds:
            linear, attention = (
                [seconds / speed for seconds, speed in zip(each, speeds, strict=True)]
                for each in (linear, attention)
            )
        if ranks == 1:
            return linear[0] + attention[0]
        moving = self.moving_s(by_rank, wires)
        if scheme.method in IN_A_ROW:
            coding = self.coding_s(scheme, spans)
            busy = max(map(sum, zip(linear, attention, coding, strict=True)))
            return busy + moving + waits if not scheme.pipelined else max(busy, moving) + waits
        busy = max(attention)
        hidden = min(busy, moving * (1 - 1 / _steps(scheme, ranks))) if scheme.pipelined else 0.0
        return max(linear) + busy + moving - hidden + waits


def _steps(scheme: Scheme, ranks: int) -> int:
    """Exchanges of a layer by a method that is not in `IN_A_ROW`."""
    return ranks // scheme.ulysses + 2 * (scheme.ulysses > 1)


def _pairs(span: Span, earlier: float) -> float:
    """The sum of keys that each query of a span sees; keys before the span count `earlier`."""
    return span.tokens * (span.tokens / 2 + span.start * earlier)


def _queries(span: Span, tokens: int) -> float:
    """The sum of queries, among `tokens` tokens, that see each key of a span."""
    return ((tokens - span.start) ** 2 - (tokens - span.stop) ** 2) / 2
