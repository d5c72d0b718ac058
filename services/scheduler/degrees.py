"""How many shards are worth using for one prompt, and behind which links."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import product, starmap
from math import exp, inf, log2
from typing import NamedTuple

from sps2.common.errors import Invalid
from sps2.common.messages import PrefillOptions
from sps2.services.scheduler.hardware import WORST, Hardware, Wire
from sps2.services.scheduler.keeping import LINK_OCTAVES, TIERS
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


class Choice(NamedTuple):
    """How many shards to use. Those whose link is worse than `worst` are left out."""

    degree: int
    worst: Wire = WORST


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
        deposits: bool = False,
    ) -> Choice:
        """The degree for a prompt.

        Args:
            tokens: that are not cached.
            most: shards that it may use.
            idle: of these, those that prefill nothing.
            gathers: whether one of them keeps all KV, so that the others send it theirs.
            paces: of all shards, the fastest first; empty if all are alike. Then the best degree
                is that of the fastest ones among those with good links: shards that are slower, or
                have slower links, are left out where that is faster.
            idle_paces: of those that prefill nothing.
            deposits: whether others keep the KV, so that all send it theirs.
        """
        if most < 2 or tokens < 2 or options.method is not None:
            return Choice(most)
        octave = tokens.bit_length() - 1
        unit = max(1, (1 << octave) // STEPS)
        rounded, idle = tokens // unit * unit, min(most, idle)
        hardware = self._schemes.hardware
        return self._chosen(
            rounded, most, idle, options, gathers, paces, idle_paces, deposits, hardware
        )

    def behind(
        self, tokens: int, degree: int, options: PrefillOptions, paces: tuple[Pace, ...]
    ) -> Choice:
        """The links for a prompt that has to have this degree: those with which it ends soonest."""
        found = [
            (self._seconds(tokens, group, options, False, False), *_strict(worst))
            for worst, members in _by_links(paces)
            if len(group := members[:degree]) == degree
        ]
        if not found:
            return Choice(degree)
        _, rate, lag = min(found)
        return Choice(degree, Wire(-rate, lag))

    def _choose(
        self,
        tokens: int,
        most: int,
        idle: int,
        options: PrefillOptions,
        gathers: bool,
        paces: tuple[Pace, ...],
        idle_paces: tuple[Pace, ...],
        deposits: bool,
        hardware: Hardware,
    ) -> Choice:
        alone_s = self._schemes.alone_s(tokens)
        seconds: dict[tuple[Pace, ...], float] = {}

        def takes_s(group: tuple[Pace, ...]) -> float:
            if group not in seconds:
                seconds[group] = self._seconds(tokens, group, options, gathers, deposits)
            return seconds[group]

        def is_used(group: tuple[Pace, ...], efficiency: float, least_s: float = 0.0) -> bool:
            """Whether a group's time goes into arithmetic to this share, with so much for each."""
            power = sum(pace.speed for pace in group)
            if len(group) == 1:
                return True
            return alone_s >= power * max(efficiency * takes_s(group), least_s)

        alike = (Pace(1.0),) * most
        unbusy = idle_paces if paces else alike[: max(1, idle)]
        filled = [
            each for each in _groups(paces or alike, most) if is_used(each[1], EFFICIENT, LEAST_S)
        ]
        spared = [each for each in _groups(unbusy, idle) if is_used(each[1], SPARE)]
        if not paces:
            soonest = min((group for _, group in spared), key=lambda g: (takes_s(g), -len(g)))
            return Choice(max([len(soonest), *(len(group) for _, group in filled)]))

        def fewest(found: list[tuple[Wire, tuple[Pace, ...]]]) -> Choice:
            enough = GAIN * min(takes_s(group) for _, group in found)
            quick = [
                (len(group), takes_s(group), *_strict(worst))
                for worst, group in found
                if takes_s(group) <= enough
            ]
            degree, _, rate, lag = min(quick)
            return Choice(degree, Wire(-rate, lag))

        choices = [fewest(found) for found in (spared, filled) if found]
        return max(choices, key=lambda choice: choice.degree)

    def _seconds(
        self,
        tokens: int,
        group: tuple[Pace, ...],
        options: PrefillOptions,
        gathers: bool,
        deposits: bool,
    ) -> float:
        """Predicted seconds of a group, the fastest shard first."""
        schemes, degree = self._schemes, len(group)
        speeds = tuple(pace.speed for pace in reversed(group))
        wires = tuple(pace.wire for pace in reversed(group))
        wires = () if {*wires} == {Wire()} else wires
        try:
            partition = schemes.choose(tokens, degree, options, speeds=speeds, wires=wires)
        except Invalid:  # a configured method that needs another degree
            return inf
        seconds = partition.predicted_s
        if gathers and degree > 1:
            seconds = max(seconds, schemes.gathered_s(partition, wires))
        if deposits:
            seconds = max(seconds, schemes.deposited_s(partition, wires))
        return seconds * (exp(max(pace.drag for pace in group)) if degree > 1 else 1.0)


def _strict(worst: Wire) -> tuple[float, float]:
    """A sort key: of limits by which the same group is found, the narrowest comes first."""
    return -worst.rate, worst.lag


def _by_links(paces: tuple[Pace, ...]) -> Iterator[tuple[Wire, tuple[Pace, ...]]]:
    """All shards; without those with the slowest links; and so on, likewise for latency.

    Links within a factor of 2 to the power of `LINK_OCTAVES` are left out together.
    """
    rates, lags = dict[int, float](), dict[int, float]()
    for pace in paces:
        rate, lag = pace.wire
        tiers = round(log2(rate) / LINK_OCTAVES), round(log2(lag) / LINK_OCTAVES)
        rates[tiers[0]] = min(rate, rates.get(tiers[0], rate))
        lags[tiers[1]] = max(lag, lags.get(tiers[1], lag))
    seen = set[tuple[Pace, ...]]()
    for worst in starmap(Wire, product(sorted(rates.values()), sorted(lags.values())[::-1])):
        members = tuple(pace for pace in paces if pace.wire.is_within(worst))
        if members and members not in seen:
            seen.add(members)
            yield worst, members


def _groups(paces: tuple[Pace, ...], most: int) -> Iterator[tuple[Wire, tuple[Pace, ...]]]:
    """Groups to compare, each with its worst link: the fastest of those with good links."""
    for worst, members in _by_links(paces):
        limit = min(most, len(members))
        for degree in _candidates(limit, members):
            yield worst, members[:degree]


def _candidates(limit: int, paces: tuple[Pace, ...]) -> list[int]:
    """Degrees to compare: a limit and its halves; if speeds differ, also all without the slowest
    shard or two, and all that are faster than others by a step of `TIERS`."""
    found, degree = {1}, limit
    while degree > 1:
        found.add(degree)
        degree //= 2
    if len({*paces}) > 1:
        found |= {degree for degree in (limit - 1, limit - 2) if degree > 1}
        tiers = [round(TIERS * log2(pace.speed)) for pace in paces[:limit]]
        found |= {n for n in range(2, limit) if tiers[n] < tiers[n - 1]}
    return sorted(found)
