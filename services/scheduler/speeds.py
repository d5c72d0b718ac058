"""How fast each shard computes: measured by itself, and learned from its prefills."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sps2.services.scheduler.hardware import Wire

ALIKE = 1.25
"""Shards whose speeds differ by no more than this factor count as equally fast."""
STEPS = 16
"""Relative speeds are rounded to 2 to the power of one over this, so that plans can be kept."""
BASE_STEPS = 4
"""The rate of the fastest shard is rounded to 2 to the power of one over this."""
BELIEVED = 1.5
"""What a shard measures of itself is right if it differs from what was learned by this at most."""
LONG_ROWS = 256
"""Parts with so many rows show what a shard can compute; shorter ones take longer per row."""
LEAST_ROWS = 8
"""A part with fewer rows says nothing about a shard: it waits for memory, not for arithmetic."""
LEAST_S = 0.02
"""Nor does one that took less time, in seconds."""
SHORT_ROWS = ((32, 0.25), (256, 0.5))
"""The weight of parts with fewer rows than this."""
FIRST, LATER = 0.8, 0.35
"""Weights of the first and of later measurements against what was known before."""
DRIFT_S = 600.0
"""A shard that is not measured counts as fast again: its distance to the fastest shrinks by a
factor of e in so many seconds. So one that was slow once is tried again, at first with little."""
USUAL = 0.1
"""Least weight of a measurement in the usual rate of parts of its length."""
NEAR = 2
"""A drag counts for lengths up to so many half octaves longer."""
DRAG_STEPS = 8
"""Drags are rounded to one over this, so that plans can be kept."""
MOST = math.log(16)
"""The largest difference, as a natural logarithm, that one measurement can show."""


class Part(NamedTuple):
    """What one shard computed of a prompt.

    rows: tokens. rate: the natural logarithm of its GFLOP/s. weight: up to 1.
    """

    shard: str
    rows: int
    rate: float
    weight: float = 1.0


class Learned(NamedTuple):
    """What is known of a shard.

    log: natural logarithm of its GFLOP/s, but for what is `Usual`. seen: prefills, the older ones
    counting less. at_s: when it was last measured.
    """

    log: float
    seen: float
    at_s: float


class Usual(NamedTuple):
    """The usual rate of parts of one length, as the logarithm of its ratio to that of the shard
    that computes them, and how many were measured."""

    rate: float
    seen: int


class Drag(NamedTuple):
    """How much longer than its arithmetic a prefill took whose slowest shard this was.

    log: natural logarithm of that factor. at_s: when it was last measured.
    """

    log: float
    at_s: float


class Pace(NamedTuple):
    """What is predicted of a shard: its relative speed, the `Drag` of a group with it, its link."""

    speed: float
    drag: float = 0.0
    wire: Wire = Wire()

    @property
    def order(self) -> tuple[float, float]:
        """A sort key: the fastest first, then those that delay a group least."""
        return -self.speed, self.drag


class SpeedsState(NamedTuple):
    """All that `Speeds` has learned, as data.

    usual: by length, see `_length`. drags: of prompts of several shards, by shard and length.
    claims: the logarithm of the GFLOP/s that each shard measured itself.
    """

    shards: dict[str, Learned]
    usual: dict[int, Usual]
    drags: dict[str, dict[int, Drag]]
    claims: dict[str, float]


class Speeds:
    """Learns the speeds of shards while they prefill.

    The formulas are wrong by a factor that depends on the length of a part and is the same for all
    shards. So the ranks of a group are compared with each other, and a shard that computes alone
    with what is usual for such a length.

    What a shard measures itself is where learning begins. Later only its changes count: a shard
    that measures too much, or too little, is not believed again.
    """

    def __init__(self, state: SpeedsState | None = None) -> None:
        self._shards = dict(state.shards) if state else {}
        self._usual = dict(state.usual) if state else {}
        self._drags = {shard: dict(own) for shard, own in state.drags.items()} if state else {}
        self._claims = dict(state.claims) if state else {}
        self.now_s = 0.0
        """The time for which speeds are asked."""

    def state(self) -> SpeedsState:
        """A copy of all that it knows."""
        drags = {shard: dict(own) for shard, own in self._drags.items()}
        return SpeedsState(dict(self._shards), dict(self._usual), drags, dict(self._claims))

    def forget(self, shard: str) -> None:
        """A shard has left, or begins a new life: nothing is known of it."""
        for known in (self._shards, self._drags, self._claims):
            known.pop(shard, None)

    def claim(self, shard: str, gflops: float, now_s: float) -> None:
        """A shard has measured its own rate, while it did nothing else."""
        self.now_s, log = now_s, math.log(gflops)
        before, known = self._claims.get(shard), self._shards.get(shard)
        self._claims[shard] = log
        if known is None or before is None:
            self._shards[shard] = Learned(log, 0.0, now_s)
            return
        moved = known.log + log - before
        behind = max(each.log for each in self._shards.values()) - moved
        claimed = max(self._claims.values()) - log
        is_right = abs(behind - claimed) <= math.log(BELIEVED)
        self._shards[shard] = known._replace(log=moved, at_s=now_s if is_right else known.at_s)

    def fastest_gflops(self, shards: Iterable[str]) -> float | None:
        """The rate of the fastest shard, for long parts; None if nothing is known."""
        logs = [self._log(shard) for shard in shards if shard in self._shards]
        if not logs:
            return None
        long = [each for length, each in self._usual.items() if length >= _length(LONG_ROWS)]
        if not long and not self._claims:
            return None
        seen = sum(each.seen for each in long)
        usual = sum(each.rate * each.seen for each in long) / seen if seen else 0.0
        return float(2 ** (round((max(logs) + usual) / math.log(2) * BASE_STEPS) / BASE_STEPS))

    def pace(self, shard: str, speed: float, tokens: int) -> Pace:
        """What is predicted of a shard in a group that computes so many tokens.

        The shorter a prompt, the more a slow shard's other work counts: joining, sending.
        """
        own, length = self._drags.get(shard, {}), _length(tokens)
        near = [each for each in own if each >= length - NEAR]
        if not near:
            return Pace(speed)
        drag = own[min(near, key=lambda each: (abs(each - length), each))]
        kept = math.exp(-max(0.0, self.now_s - drag.at_s) / DRIFT_S)
        return Pace(speed, round(drag.log * kept * DRAG_STEPS) / DRAG_STEPS)

    def learn_drag(
        self, shards: Sequence[str], tokens: int, took_s: float, computing_s: float, now_s: float
    ) -> None:
        """A group has computed a prompt; what it took longer is put down to its slowest shard.

        Args:
            took_s: from the launch on. computing_s: of these, the longest arithmetic of a shard, or
                the longest transfer if that is longer.
        """
        slowest = min(shards, key=lambda shard: (self._log(shard), shard))
        own, length = self._drags.setdefault(slowest, {}), _length(tokens)
        log = max(0.0, min(math.log(took_s / computing_s), MOST)) if took_s > 0 else 0.0
        before = own.get(length)
        own[length] = Drag(before.log + LATER * (log - before.log) if before else log, now_s)

    def relative(self, shards: Iterable[str]) -> dict[str, float]:
        """The speed of each shard relative to the fastest of them; empty if all are alike."""
        if not self._shards:
            return {}
        logs = {shard: self._log(shard) for shard in shards}
        most = max(logs.values(), default=0.0)
        if not logs or most - min(logs.values()) <= math.log(ALIKE):
            return {}
        unit = STEPS / math.log(2)
        return {shard: 2 ** (round((log - most) * unit) / STEPS) for shard, log in logs.items()}

    def learn(self, parts: Sequence[Part], now_s: float) -> None:
        """The parts of one prompt were computed: by a group, or by a shard alone."""
        self.now_s = now_s
        logs = {part.shard: self._log(part.shard) for part in parts}
        usual = [self._usual_of(part, logs[part.shard], len(parts) > 1) for part in parts]
        over = [
            part.rate - logs[part.shard] - each.rate
            for part, each in zip(parts, usual, strict=True)
        ]
        mean = sum(over) / len(over) if len(parts) > 1 else 0.0
        for part, each, extra in zip(parts, usual, over, strict=True):
            step = self._gain(part) * max(-MOST, min(extra - mean, MOST))
            count = self._count(part.shard) + part.weight
            self._shards[part.shard] = Learned(logs[part.shard] + step, count, now_s)
            common = mean if len(parts) > 1 else extra - step
            rate = each.rate + max(USUAL, 1 / (each.seen + 1)) * common
            self._usual[_length(part.rows)] = Usual(rate, each.seen + 1)

    def _usual_of(self, part: Part, log: float, in_group: bool) -> Usual:
        """The usual rate of parts of this length. The first measurement of one is usual.

        The parts of a group have about the same length: what is not known of one is that of the
        nearest length.
        """
        length = _length(part.rows)
        if length in self._usual:
            return self._usual[length]
        if not in_group:
            return Usual(part.rate - log, 0)
        nearest = min(self._usual, key=lambda other: (abs(other - length), other), default=None)
        return Usual(0.0 if nearest is None else self._usual[nearest].rate, 0)

    def _log(self, shard: str) -> float:
        """The logarithm of its speed now; of a shard that was not measured, the fastest's."""
        fastest = max((each.log for each in self._shards.values()), default=0.0)
        known = self._shards.get(shard)
        return fastest + (known.log - fastest) * self._kept(known) if known else fastest

    def _kept(self, known: Learned) -> float:
        """How much of what was learned still counts."""
        return math.exp(-max(0.0, self.now_s - known.at_s) / DRIFT_S)

    def _count(self, shard: str) -> float:
        known = self._shards.get(shard)
        return known.seen * self._kept(known) if known else 0.0

    def _gain(self, part: Part) -> float:
        return part.weight * max(LATER, FIRST / (1 + self._count(part.shard) / 2))


def part_of(shard: str, rows: int, gflop: float, took_s: float, busy: bool = False) -> Part | None:
    """What a part says about its shard; None if that is too little.

    Args:
        gflop: its arithmetic by the formulas. took_s: wall-clock seconds.
        busy: whether the shard worked for other requests meanwhile, which counts less.
    """
    if rows < LEAST_ROWS or took_s < LEAST_S or gflop <= 0:
        return None
    weight = next((less for most, less in SHORT_ROWS if rows < most), 1.0)
    return Part(shard, rows, math.log(gflop / took_s), weight * (0.25 if busy else 1.0))


def _length(rows: int) -> int:
    """The length of a part in half octaves: within one, the formulas are wrong alike."""
    return round(2 * math.log2(rows))
