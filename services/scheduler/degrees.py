"""How many shards are worth using for one prompt."""

from functools import lru_cache
from math import exp, inf, log2

from sps2.common.errors import Invalid
from sps2.common.messages import PrefillOptions
from sps2.services.scheduler.keeping import TIERS
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.speeds import Pace

EFFICIENT = 0.8
"""Share of the shards' time that must go into a prompt's arithmetic where they have other work."""
SPARE = 0.5
"""The same for shards that are idle: less would load the links of all for little."""
LEAST_S = 0.06
"""Arithmetic that each shard must get where others have work: below that, a pass of a GPU does not
fill it, and ranks wait for each other more than they compute."""
STEPS = 16
"""Lengths of prompts count as equal within a factor of 2 to the power of one over this."""
GAIN = 1.05
"""Of shards that are not equally fast, as few are used as take at most this much longer than the
best number: what a slow one gains must be worth what a part costs besides its arithmetic."""
KEPT = 4096
"""How many recent degrees are kept."""


class Degrees:
    """Chooses SP degrees by prediction.

    With an idle cluster a prompt gets the degree at which its first token comes soonest, unless
    that would waste most of the shards' time. While other prompts are computed it gets only as many
    shards as it uses well, since what it wastes delays them: where the speedup is less than linear,
    the least mean response time needs the fewer shards for each the more wait (heSRPT, Berg et al.,
    arXiv 2011.09676).
    """

    def __init__(self, schemes: Schemes) -> None:
        self._schemes = schemes
        self._chosen = lru_cache(KEPT)(self._choose)

    def best(
        self,
        tokens: int,
        most: int,
        idle: int,
        options: PrefillOptions,
        gathers: bool = False,
        paces: tuple[Pace, ...] = (),
        idle_paces: tuple[Pace, ...] = (),
    ) -> int:
        """The degree for a prompt.

        Args:
            tokens: that are not cached.
            most: shards that it may use.
            idle: of these, those that prefill nothing.
            gathers: whether one of them keeps all KV, so that the others send it theirs.
            paces: of the shards, the fastest first; empty if all are alike. Then the best degree
                is that of the fastest ones: slower shards are left out where that is faster.
            idle_paces: of those that prefill nothing.
        """
        if most < 2 or tokens < 2 or options.method is not None:
            return most
        octave = tokens.bit_length() - 1
        unit = max(1, (1 << octave) // STEPS)
        idle = min(most, idle)
        rounded = tokens // unit * unit
        return self._chosen(rounded, most, idle, options, gathers, paces[:most], idle_paces[:idle])

    def _choose(
        self,
        tokens: int,
        most: int,
        idle: int,
        options: PrefillOptions,
        gathers: bool,
        paces: tuple[Pace, ...],
        idle_paces: tuple[Pace, ...],
    ) -> int:
        alone_s = self._schemes.alone_s(tokens)
        seconds: dict[tuple[int, tuple[Pace, ...]], float] = {}

        def takes_s(degree: int, fast: tuple[Pace, ...]) -> float:
            key = degree, fast[:degree]
            if key not in seconds:
                seconds[key] = self._seconds(tokens, degree, options, gathers, fast[:degree])
            return seconds[key]

        def within(limit: int, efficiency: float, fast: tuple[Pace, ...]) -> list[int]:
            """Degrees up to a limit that use their shards so well."""
            return [
                degree
                for degree in _candidates(limit, fast)
                if degree == 1
                or alone_s >= efficiency * _power(degree, fast) * takes_s(degree, fast)
            ]

        filled = [
            degree
            for degree in within(most, EFFICIENT, paces)
            if alone_s >= _power(degree, paces) * LEAST_S
        ]
        spared = within(idle, SPARE, idle_paces)
        if not paces:
            soonest = min(spared, key=lambda degree: (takes_s(degree, ()), -degree))
            return max([soonest, *filled])

        def fewest(degrees: list[int], fast: tuple[Pace, ...]) -> int:
            least_s = min((takes_s(degree, fast) for degree in degrees), default=0.0)
            return next((each for each in degrees if takes_s(each, fast) <= GAIN * least_s), 1)

        return max(fewest(spared, idle_paces), fewest(filled, paces))

    def _seconds(
        self,
        tokens: int,
        degree: int,
        options: PrefillOptions,
        gathers: bool,
        paces: tuple[Pace, ...],
    ) -> float:
        schemes = self._schemes
        if degree == 1:
            return schemes.alone_s(tokens) / (paces[0].speed if paces else 1.0)
        speeds = tuple(pace.speed for pace in reversed(paces))
        try:
            partition = schemes.choose(tokens, degree, options, speeds=speeds)
        except Invalid:  # a configured method that needs another degree
            return inf
        gathered_s = schemes.gathered_s(partition) if gathers else 0.0
        drag = exp(max(pace.drag for pace in paces)) if paces else 1.0
        return max(partition.predicted_s, gathered_s) * drag


def _candidates(limit: int, paces: tuple[Pace, ...]) -> list[int]:
    """Degrees to compare: a limit and its halves; if speeds differ, also all without the slowest
    shard or two, and all that are faster than others by a step of `TIERS`."""
    found, degree = {1}, limit
    while degree > 1:
        found.add(degree)
        degree //= 2
    if paces:
        found |= {degree for degree in (limit - 1, limit - 2) if degree > 1}
        tiers = [round(TIERS * log2(pace.speed)) for pace in paces[:limit]]
        found |= {n for n in range(2, limit) if tiers[n] < tiers[n - 1]}
    return sorted(found)


def _power(degree: int, paces: tuple[Pace, ...]) -> float:
    """What so many of the fastest shards compute together, in shards of the configured rate."""
    return sum(pace.speed for pace in paces[:degree]) if paces else degree
