"""The highest rate at which a candidate meets the SLOs: by bisection, with an interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

from sps2.cli.simulator.intervals import Figure, share
from sps2.cli.simulator.planning.candidates import Candidate
from sps2.cli.simulator.planning.trials import Trial, Trials
from sps2.cli.simulator.statistics import in_order

LOWEST = 1e-3
"""Of the first guess: no lower rate is tried."""
GROWTH = 1.6
EXTENSIONS = 6
DOWN, UP = 0.75, 1.25
NARROW = 1.12
"""`GROWTH` where the first guess is a good one."""


@dataclass(frozen=True)
class Capacity:
    """Of one candidate.

    rate: the highest one at which SLOs are met, with its 95 % interval. slower, faster: what it is
    if all times of the profile are longer, or shorter, by its margin. trials: in the order of their
    rates; the last that passes is at `rate`. is_bounded: more is impossible, whatever the SLOs.
    """

    candidate: Candidate
    rate: Figure
    slower: float
    faster: float
    trials: tuple[Trial, ...]
    is_bounded: bool

    @property
    def passing(self) -> Trial | None:
        """The trial at the highest rate."""
        return next((each for each in self.trials if each.rate == self.rate.value), None)

    @property
    def failing(self) -> Trial | None:
        """The trial at the next rate, which is too high."""
        return next((each for each in self.trials if each.rate > self.rate.value), None)


def climb(
    passes: Callable[[float], bool],
    guess: float,
    most: float,
    tolerance: float,
    growth: float = GROWTH,
) -> tuple[float, float]:
    """A rate that passes and a higher one that does not, at most by `tolerance` apart.

    Args:
        guess: the first rate to try.
        most: surely no higher rate passes.
        growth: factor from one rate to the next until one of each kind is found.

    Returns:
        0 and a rate if none passes, down to `LOWEST` of the guess; `most` twice if that passes.
    """
    rate = min(guess, most)
    low, high, step = 0.0, 0.0, growth
    lowest = rate * LOWEST
    while not low or not high:
        if passes(rate):
            low = rate
            if rate >= most:
                return most, most
            rate = min(most, rate * growth)
        else:
            high = rate
            if rate <= lowest:
                return 0.0, rate
            rate = max(lowest, rate / step)
            step *= step
    while high > low * (1 + tolerance):
        middle = sqrt(low * high)
        if passes(middle):
            low = middle
        else:
            high = middle
    return low, high


def measure(
    trials: Trials, candidate: Candidate, guess: float, requests: int, tolerance: float
) -> Capacity:
    """The capacity of a candidate, with an interval of sample and profile.

    The sample's: at which rates the interval of the share within the SLOs has their share as its
    limit. The profile's: if all times are longer by a factor, a rate is as good as that rate times
    the factor is for SLOs divided by it.
    """
    most = trials.bounds.of(candidate).most
    tried: dict[float, Trial] = {}

    def run(rate: float) -> Trial:
        tried[rate] = trials.run(candidate, rate, requests, "late")
        return tried[rate]

    low, high = climb(lambda rate: run(rate).passes, guess, most, tolerance, NARROW)
    if not low:
        return Capacity(
            candidate, Figure(0.0, 0.0, high, requests), 0.0, 0.0, _sorted(tried), False
        )
    known = next(trial.run for trial in tried.values() if trial.run)
    margin = known.margin
    worse, better = 1 + margin, 1 - margin
    floors: list[float | None] = []
    for _ in range(EXTENSIONS):
        floors = [_crossing(trials, tried, each, most) for each in ("low", worse)]
        if None not in floors:
            break
        run(min(tried) * DOWN)
    ceilings: list[float | None] = []
    for _ in range(EXTENSIONS):
        ceilings = [_crossing(trials, tried, each, most) for each in ("high", better)]
        highest = max(tried)
        if highest >= most or all(each is not None and each < highest for each in ceilings):
            break
        run(min(most, highest * UP))
    sampled_low, slower = min(floors[0] or 0.0, low), min((floors[1] or 0.0) / worse, low)
    sampled_high = max(ceilings[0] or low, low)
    faster = max((ceilings[1] or low) / better if better > 0 else most, low)
    figure = Figure(
        low,
        max(0.0, low - sqrt((low - sampled_low) ** 2 + (low - slower) ** 2)),
        low + sqrt((sampled_high - low) ** 2 + (faster - low) ** 2),
        requests,
    )
    return Capacity(candidate, figure, slower, faster, _sorted(tried), low >= most)


def met_at(trials: Trials, trial: Trial, factor: float = 1.0) -> Figure:
    """The share within the SLOs of a whole trial, with the sample's interval.

    Args:
        factor: that its times are multiplied with.
    """
    assert trial.run is not None
    met = trials.objectives.are_met
    return share([met(each, factor) for each in in_order(trial.run)])


def _sorted(tried: dict[float, Trial]) -> tuple[Trial, ...]:
    return tuple(tried[rate] for rate in sorted(tried))


def _crossing(
    trials: Trials, tried: dict[float, Trial], side: str | float, most: float
) -> float | None:
    """The rate at which the share within the SLOs falls below what is wanted.

    Args:
        side: a limit of its interval, or a factor of all times.

    Returns:
        None if it is below at every rate; the highest one if it is nowhere.
    """
    points: list[tuple[float, float | None]] = []
    for trial in _sorted(tried):
        value = None
        if trial.run is not None and trial.state != "overloaded":
            found = met_at(trials, trial, side if isinstance(side, float) else 1.0)
            value = getattr(found, side) if isinstance(side, str) else found.value
        points.append((trial.rate, value))
    return crossing(points, trials.attainment, most)


def crossing(
    points: Sequence[tuple[float, float | None]], target: float, most: float
) -> float | None:
    """Where values by rate, in its order, first fall below a target; see `_crossing`.

    A straight line joins two values; None is below the target by an unknown amount.
    """
    before: tuple[float, float] | None = None
    for rate, value in points:
        if value is None or value < target - 1e-9:
            if before is None:
                return None
            known, left = before
            if value is None:
                return min(most, sqrt(known * rate))
            return min(most, known + (rate - known) * max(0.0, left - target) / (left - value))
        before = rate, value
    return min(most, points[-1][0])
