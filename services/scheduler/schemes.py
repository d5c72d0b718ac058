"""Chooses how a prefill group shares a prompt: by the requested method, or by predicted time."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from sps2.common.config import Sharing
from sps2.common.errors import Invalid
from sps2.common.messages import (
    ExactMethod,
    KvTransferDtype,
    Method,
    PrefillOptions,
    Scheme,
    Setting,
)
from sps2.common.model.config import ModelConfig
from sps2.common.model.share import share_of
from sps2.common.spans import Span, consecutive, fits, within, zigzag
from sps2.services.scheduler import traffic
from sps2.services.scheduler.csa_thresholds import Calibration, Sparse, coded, selection
from sps2.services.scheduler.hardware import Hardware, Known, Wire, hardware_of, lossless_on
from sps2.services.scheduler.partition import Capacity, Partition
from sps2.services.scheduler.rates import IN_A_ROW, Rates

SHORT = 4096
"""Prompts up to here gain nothing from CSA: quantised keys and values are all sent."""

TWO_SPANS = ("ring", "usp")
"""Methods that need two spans per rank, so that causal work is even."""
WEIGHTS = tuple(eighth / 8 for eighth in range(8, -1, -1))
"""Weights of attention in sizing consecutive spans: 1 balances arithmetic, 0 makes spans equal."""
CLOSE = 1.05
"""Predictions within this factor of the best count as equal: of these methods the first in `EXACT`
is used, since its ranks wait least for each other."""
SAME = 1.05
"""Ranks whose speeds differ by at most this factor count as equally fast."""
EVEN = 1.01
"""Spans whose prediction is within this factor of evenly shared arithmetic are not improved."""
CHOICES = 1024
"""How many recent choices are kept: a request that waits is planned again and again."""
EXACT: tuple[ExactMethod, ...] = ("gather", "ring", "ulysses", "usp", "pass_q")


class Computed(NamedTuple):
    """What keys and values depend on, besides the model and the tokens."""

    attention: Setting
    kv_transfer_dtype: KvTransferDtype


class Inputs(NamedTuple):
    """The arguments of `Schemes`."""

    config: ModelConfig
    itemsize: int
    sharing: Sharing
    attention: Setting
    calibration: Calibration | None
    tp: int


class Schemes:
    """Chooses schemes for one model on one cluster.

    Args:
        itemsize: bytes of an activation.
        attention: the default for requests.
        calibration: CSA's selections for this model, if calibrated.
        tp: processes of a shard, each of which exchanges its own heads.
    """

    def __init__(
        self,
        config: ModelConfig,
        itemsize: int,
        sharing: Sharing,
        attention: Setting = "exact",
        calibration: Calibration | None = None,
        tp: int = 1,
    ) -> None:
        self.inputs = Inputs(config, itemsize, sharing, attention, calibration, tp)
        self._config = share_of(config, tp)
        self._tp = tp
        self._itemsize = itemsize
        self._sharing = sharing
        self._attention = attention
        self._calibration = calibration
        self._chosen = lru_cache(CHOICES)(self._choose)
        self._take(hardware_of(sharing))

    def adapt(self, known: Known) -> None:
        """Predict from now on with what was measured, as far as nothing else is configured."""
        if (hardware := hardware_of(self._sharing, known)) != self.hardware:
            self._take(hardware)

    def _take(self, hardware: Hardware) -> None:
        self.hardware = hardware
        """The shards and links that predictions are for."""
        self._rates = Rates(self.inputs.config, hardware, self._sharing.attention_rate)
        self.alone_s = self._rates.alone_s
        self.tokens_within = self._rates.tokens_within
        self._chosen.cache_clear()

    def degree(self, tokens: int, ranks: int, page_tokens: int = 1) -> int:
        """How many of `ranks` shards share a prompt: each gets at least a page, or two tokens."""
        return max(1, min(ranks, tokens // max(2, page_tokens)))

    def choose(
        self,
        tokens: int,
        ranks: int,
        options: PrefillOptions,
        capacity: Capacity | None = None,
        speeds: tuple[float, ...] = (),
        wires: tuple[Wire, ...] = (),
    ) -> Partition:
        """How `ranks` shards, or fewer if the prompt is short, prefill `tokens` tokens.

        If the prompt is too short for that many, the requested method is ignored.

        Args:
            capacity: if given, ranks keep the KV that they compute, each has one span, and the
                prompt must fit; it has the room of `degree` ranks.
            speeds: of the shards, 1 being that of the hardware; empty if all have that. If the
                prompt is too short for all, the first ones share it.
            wires: of the shards; empty if all have the hardware's link.

        Raises:
            Invalid: the options contradict each other, or cannot be satisfied.
        """
        if speeds and max(speeds) <= SAME * min(speeds):
            speeds = (max(speeds),) * len(speeds) if max(speeds) * SAME < 1 else ()
        return self._chosen(tokens, ranks, options, capacity, speeds, wires)

    def _choose(
        self,
        tokens: int,
        ranks: int,
        options: PrefillOptions,
        capacity: Capacity | None,
        speeds: tuple[float, ...],
        wires: tuple[Wire, ...],
    ) -> Partition:
        attention, kv_transfer_dtype = self.computed(options)
        if attention != "exact" and options.method is not None:
            raise Invalid(
                f"attention {attention} brings its own method; leave out method {options.method}, "
                "or ask for attention exact",
                "sps2.method",
                "invalid_value",
            )
        requested = ranks
        ranks = self.degree(tokens, requested, capacity.page_tokens if capacity else 1)
        speeds, wires = speeds[:ranks], wires[:ranks]
        if attention != "exact":
            forms = self._sparse(tokens, ranks, attention, kv_transfer_dtype, options, capacity)
            ways = [self.partition(each, tokens, ranks, capacity, speeds, wires) for each in forms]
            soonest = min(ways, key=lambda each: each.predicted_s)
            return soonest._replace(attention=attention)
        forced = "gather" if ranks < max(2, requested) else options.method or self._sharing.method
        if forced != "auto":
            return self._cheapest(forced, tokens, ranks, options, capacity, speeds, wires)
        found = []
        for method in EXACT:
            try:
                found.append(
                    self._cheapest(method, tokens, ranks, options, capacity, speeds, wires)
                )
            except Invalid:
                continue
            if found[0].predicted_s <= CLOSE * self.alone_s(tokens) / (sum(speeds) or ranks):
                return found[0]  # none can do better than share the arithmetic evenly
        enough = CLOSE * min(each.predicted_s for each in found)
        return next(each for each in found if each.predicted_s <= enough)

    def computed(self, options: PrefillOptions) -> Computed:
        """How a request's keys and values are computed."""
        attention = options.attention or ("exact" if options.method else self._attention)
        kv_transfer_dtype: KvTransferDtype = (
            self._sharing.kv_transfer_dtype if attention == "exact" else "int8"
        )
        return Computed(attention, options.kv_transfer_dtype or kv_transfer_dtype)

    def behind(
        self,
        partition: Partition,
        cached: int,
        queries: Sequence[traffic.PrefixQuery],
        holders: int,
        rate: float = 1.0,
    ) -> Partition:
        """The partition with the predicted cost of its attention to a cached prefix.

        Transfers count in full, even where arithmetic hides them: they take links from others.

        Args:
            queries: those that ranks send to other shards.
            holders: how many shards have the prefix.
            rate: the least of the `Wire.rate`s of all of them.
        """
        moved = traffic.prefix_transfers(self._config, self._itemsize, queries)
        ranks = len(partition.spans)
        tokens = sum(span.tokens for own in partition.spans for span in own)
        answers_s = self._rates.pair_s * tokens * cached / holders
        busiest = max(moved.values(), default=0) / min(ranks, holders) / rate
        moving_s = self._rates.moving_s((busiest,))
        hidden_s = self._rates.pair_s * tokens**2 / 2 / ranks if partition.scheme.pipelined else 0.0
        added_s = max(0.0, answers_s - hidden_s) + moving_s
        return partition._replace(
            predicted_bytes=partition.predicted_bytes
            | {purpose: nbytes * self._tp for purpose, nbytes in moved.items()},
            predicted_s=partition.predicted_s + added_s,
        )

    def gathered_s(self, partition: Partition, wires: Sequence[Wire] = ()) -> float:
        """Seconds on the link of a rank to which the others also send all their KV, to keep it."""
        ranks = len(partition.spans)
        tokens = sum(span.tokens for own in partition.spans for span in own)
        token_bytes = traffic.deposit_bytes(self._config, self._itemsize, partition.scheme)
        deposited = token_bytes * tokens * (ranks - 1) / ranks
        exchanged = 2 * sum(partition.predicted_bytes.values()) / ranks / self._tp
        each = deposited / max(1, ranks - 1) + exchanged
        by_rank = [each] * (ranks - 1) + [deposited + exchanged]
        return self._rates.moving_s(by_rank, wires)

    def deposited_s(self, partition: Partition, wires: Sequence[Wire] = ()) -> float:
        """Seconds on the busiest link of ranks that send all their KV to other shards."""
        token_bytes = traffic.deposit_bytes(self._config, self._itemsize, partition.scheme)
        kept = [token_bytes * sum(span.tokens for span in own) for own in partition.spans]
        return self._rates.moving_s(kept, wires)

    def migration_pays_after(self, held: Sequence[int]) -> int | None:
        """See `traffic.migration_pays_after`."""
        return traffic.migration_pays_after(self._config, self._itemsize, held)

    def _sparse(
        self,
        tokens: int,
        ranks: int,
        attention: Sparse,
        kv_transfer_dtype: KvTransferDtype,
        options: PrefillOptions,
        capacity: Capacity | None,
    ) -> list[Scheme]:
        """The schemes that a sparse setting may use: CSA with packed blocks, and with coded ones.

        Coded blocks are half as large, and take time to code: over slow links they come sooner.
        """
        scheme = self._scheme("gather", 1, kv_transfer_dtype, options)
        block = _block(capacity)
        in_blocks = tokens >= 2 * ranks * block
        if capacity is not None:
            in_blocks = in_blocks and fits(tokens, capacity.room, block)
        if tokens <= SHORT or ranks == 1 or not in_blocks:
            return [scheme]
        chosen = selection(attention, self._config.layers, ranks, self._calibration)
        packed = msgspec.structs.replace(scheme, method="csa", selection=chosen)
        if options.kv_transfer_dtype is not None:
            return [packed]
        return [packed, msgspec.structs.replace(packed, selection=coded(chosen, attention))]

    def _cheapest(
        self,
        method: Method,
        tokens: int,
        ranks: int,
        options: PrefillOptions,
        capacity: Capacity | None,
        speeds: tuple[float, ...],
        wires: tuple[Wire, ...],
    ) -> Partition:
        """The cheapest division into rows and columns, if the method has a choice."""
        if capacity is not None and method in TWO_SPANS:
            raise Invalid(
                f"{method} gives every shard two spans of the prompt, and the shards of this "
                "cluster keep the KV of one: ask for gather, ulysses or pass_q",
                "sps2.method",
                "invalid_value",
            )
        columns = traffic.columns_for(self._config, method, ranks)
        kv_transfer_dtype = self.computed(options).kv_transfer_dtype
        schemes = [
            self._scheme(method, each, kv_transfer_dtype, options, wires) for each in columns
        ]
        found = [self.partition(each, tokens, ranks, capacity, speeds, wires) for each in schemes]
        return min(found, key=lambda each: each.predicted_s)

    def _scheme(
        self,
        method: Method,
        columns: int,
        kv_transfer_dtype: KvTransferDtype,
        options: PrefillOptions,
        wires: Sequence[Wire] = (),
    ) -> Scheme:
        pipelined = self._sharing.pipelined if options.pipelined is None else options.pipelined
        gbit = self.hardware.link_gbit * min((wire.rate for wire in wires), default=1.0)
        lossless = lossless_on(gbit, self._sharing, options, self._itemsize)
        return Scheme(method, columns, kv_transfer_dtype, None, pipelined, lossless)

    def partition(
        self,
        scheme: Scheme,
        tokens: int,
        ranks: int,
        capacity: Capacity | None = None,
        speeds: tuple[float, ...] = (),
        wires: tuple[Wire, ...] = (),
    ) -> Partition:
        """The fastest partition of `tokens` tokens among `ranks` ranks that work by a scheme.

        Raises:
            Invalid: the model's heads do not allow it.
        """
        traffic.check_degree(self._config, scheme, ranks)
        heads, rates, found = self._config.heads, self._rates, []
        even_s = self.alone_s(tokens) / (sum(speeds) or ranks)
        for spans in self._spans(scheme, tokens, ranks, capacity, speeds):
            moved = traffic.loads(self._config, self._itemsize, scheme, spans, self._tp)
            seconds = rates.seconds(scheme, spans, moved.by_rank, heads, speeds, wires)
            own = rates.own_gflop(scheme, spans, heads)
            found.append(Partition("exact", scheme, tuple(spans), moved.by_purpose, seconds, own))
            if seconds <= EVEN * even_s + rates.waits(scheme, ranks, wires):
                break
        return min(found, key=lambda each: each.predicted_s)

    def _spans(
        self,
        scheme: Scheme,
        tokens: int,
        ranks: int,
        capacity: Capacity | None,
        speeds: tuple[float, ...],
    ) -> list[list[tuple[Span, ...]]]:
        """Candidate partitions; consecutive spans can be balanced for arithmetic or for links."""
        page, block = capacity.page_tokens if capacity else 1, _block(capacity)
        if scheme.method in IN_A_ROW:
            blocks = scheme.method == "csa" and tokens >= 2 * ranks * block
            align = block if blocks else page
            even = self._rates.pair_s / self._rates.token_s
            sizes = [speeds, ()] if len({*speeds}) > 1 else [()]
            ways = [
                consecutive(tokens, ranks, even * weight, align, each)
                for each in sizes
                for weight in WEIGHTS
            ]
        elif capacity is not None:
            ways = [consecutive(tokens, ranks, 0, page)]
        else:
            ways = [zigzag(tokens, ranks // scheme.ulysses, scheme.ulysses)]
        if capacity is None:
            return ways
        unit = block if scheme.method == "csa" else page
        return [within(spans, capacity.room, unit) for spans in ways]


def _block(capacity: Capacity | None) -> int:
    """Alignment of CSA's spans in tokens: to blocks and, if ranks keep their KV, to pages."""
    return math.lcm(traffic.BLOCK, capacity.page_tokens) if capacity else traffic.BLOCK
