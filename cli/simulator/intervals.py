"""95 % intervals of figures that come from the requests of one run.

Requests that arrive one after another share a queue, so that their times are not independent.
Values are taken in the order of arrival and cut into `BLOCKS` blocks; the spread of the blocks'
sums, with Student's t, gives the interval of a mean, a ratio or a share. Fewer than `MANY` requests
are taken as independent. A quantile's interval is that of order statistics, by the binomial
distribution: exact for independent requests; for others with as many requests as independent ones
would be equally informative, by the blocks. The largest value is its upper limit where these are
too few to bound it though at least `BLOCKS` requests lie above the quantile. Nothing is drawn at
random. Where a queue's memory is longer than a block, as in a few hundred requests near saturation,
intervals are too narrow.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, exp, floor, inf, isnan, lgamma, log, nan, sqrt

import msgspec

BLOCKS = 20
MANY = 2 * BLOCKS
Z = 1.959964
"""Of the normal distribution, at 95 %."""
TAIL = 0.025
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t at 95 %, for 1 to 10 degrees of freedom."""


class Figure(msgspec.Struct, frozen=True):
    """A figure with its 95 % interval; NaN if there is nothing to compute it from.

    high: infinite if the requests are too few to bound it, as for the 99th percentile of 60.
    count: requests (or tokens) that it is from. Of one request, the interval is the margin's only.
    """

    value: float
    low: float
    high: float
    count: int

    @property
    def is_known(self) -> bool:
        return not isnan(self.value)

    def overlaps(self, other: "Figure") -> bool:
        return self.low <= other.high and other.low <= self.high

    def widened(self, margin: float) -> "Figure":
        """With a relative error besides, which is independent of the requests."""
        extra = margin * abs(self.value)
        return Figure(
            self.value,
            max(0.0, self.value - sqrt((self.value - self.low) ** 2 + extra**2)),
            self.value + sqrt((self.high - self.value) ** 2 + extra**2),
            self.count,
        )

    def times(self, factor: float) -> "Figure":
        return Figure(self.value * factor, self.low * factor, self.high * factor, self.count)


UNKNOWN = Figure(nan, nan, nan, 0)


def exactly(value: float, count: int = 1) -> Figure:
    """A figure without an interval."""
    return Figure(value, value, value, count)


def mean(values: Sequence[float]) -> Figure:
    """The mean of values in the order of arrival, which aren't negative."""
    return ratio(values, [1.0] * len(values))


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> Figure:
    """The sum of `parts` over that of `wholes`, by request, in the order of arrival."""
    whole = sum(wholes)
    if not whole:
        return UNKNOWN
    value = sum(parts) / whole
    error = error_of_sum([p - value * w for p, w in zip(parts, wholes, strict=True)]) / whole
    return Figure(value, max(0.0, value - error), value + error, len(parts))


def share(hits: Sequence[bool]) -> Figure:
    """The share of requests that are hits, in the order of arrival. Wilson's interval."""
    count = len(hits)
    if not count:
        return UNKNOWN
    value = sum(hits) / count
    independent = equivalent_count([float(hit) for hit in hits], value)
    centre = (value + Z * Z / (2 * independent)) / (1 + Z * Z / independent)
    half = Z * sqrt(value * (1 - value) / independent + (Z / (2 * independent)) ** 2)
    half /= 1 + Z * Z / independent
    # At 0 and 1 one limit is the value itself, save for rounding.
    return Figure(
        value, max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half)), count
    )


def quantiles(values: Sequence[float], levels: Sequence[float]) -> list[Figure]:
    """Quantiles of values in the order of arrival, which aren't negative; between two of them on a
    straight line."""
    count = len(values)
    if count < 2:
        return [exactly(values[0]) if values else UNKNOWN for _ in levels]
    ordered = sorted(values)
    found = []
    for level in levels:
        value = at(ordered, level)
        below = [float(each <= value) for each in values]
        independent = round(equivalent_count(below, sum(below) / count))
        first, last = _ranks(independent, level)
        low = floor(first * count / independent)
        high = ceil(last * count / independent)
        if high > count and count * (1 - level) >= BLOCKS:
            high = count
        found.append(
            Figure(
                value,
                min(value, ordered[low - 1]) if low >= 1 else 0.0,
                max(value, ordered[high - 1]) if high <= count else inf,
                count,
            )
        )
    return found


def weighted_quantiles(
    weights: dict[float, float], levels: Sequence[float], independent: int
) -> list[Figure]:
    """Quantiles of values with weights. independent: how many independent values they are worth."""
    if not weights or independent < 1:
        return [UNKNOWN for _ in levels]
    ordered = sorted(weights.items())
    total = sum(weights.values())

    def find(share: float) -> float:
        rest = share * total
        for value, weight in ordered:
            rest -= weight
            if rest <= 1e-9 * total:
                return value
        return ordered[-1][0]

    found = []
    for level in levels:
        value = find(level)
        if independent == 1:
            found.append(Figure(value, value, value, round(total)))
            continue
        first, last = _ranks(independent, level)
        low = find((first - 0.5) / independent) if first >= 1 else 0.0
        high = find((last - 0.5) / independent) if last <= independent else inf
        found.append(Figure(value, min(low, value), max(high, value), round(total)))
    return found


def rate(times: Sequence[tuple[float, float]], start: float, stop: float) -> Figure:
    """Amounts (time, amount) per second between `start` and `stop`; from equal bins of time."""
    span = stop - start
    if span <= 0 or not times:
        return UNKNOWN
    value = sum(amount for _, amount in times) / span
    if len(times) == 1:
        return exactly(value)
    bins = [0.0] * min(BLOCKS, max(2, len(times) // 2))
    for time, amount in times:
        bins[min(int((time - start) / span * len(bins)), len(bins) - 1)] += amount
    return _from_bins(bins, value, span, len(times))


def level_over_time(changes: Sequence[tuple[float, float]], start: float, stop: float) -> Figure:
    """The mean over time of what changes at (time, new value), and is 0 before; from equal bins."""
    span = stop - start
    if span <= 0:
        return UNKNOWN
    bins = [0.0] * BLOCKS
    width = span / BLOCKS
    steps = [*changes, (stop, 0.0)]
    for (since, level), (until, _) in pairwise(steps):
        since, until = max(since, start), min(until, stop)
        if not level or until <= since:
            continue
        for index in range(int((since - start) / width), BLOCKS):
            low, high = start + index * width, start + (index + 1) * width
            if low >= until:
                break
            bins[index] += level * (min(high, until) - max(low, since))
    return _from_bins(bins, sum(bins) / span, span, len(changes))


def at(ordered: Sequence[float], level: float) -> float:
    """A quantile of values in ascending order, as numpy's default computes it."""
    place = level * (len(ordered) - 1)
    low = min(int(place), len(ordered) - 2) if len(ordered) > 1 else 0
    if len(ordered) == 1:
        return ordered[0]
    return ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])


def error_of_sum(residuals: Sequence[float]) -> float:
    """Half the 95 % interval of a sum, by the blocks of its terms, whose mean is 0; 0 for one."""
    count = len(residuals)
    blocks = count if count < MANY else BLOCKS
    if blocks < 2:
        return 0.0
    cuts = [count * index // blocks for index in range(blocks + 1)]
    squares = sum(sum(residuals[a:b]) ** 2 for a, b in pairwise(cuts))
    return student(blocks - 1) * sqrt(squares * blocks / (blocks - 1))


def equivalent_count(hits: Sequence[float], share: float) -> float:
    """How many independent requests tell as much of a share as these do."""
    count = len(hits)
    alone = share * (1 - share)
    if count < MANY or not alone:
        return max(1.0, float(count))
    error = error_of_sum([hit - share for hit in hits]) / count / student(BLOCKS - 1)
    return min(float(count), max(2.0, alone / error**2)) if error else float(count)


def student(freedom: int) -> float:
    """Student's t at 95 %."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    return Z + (Z**3 + Z) / (4 * freedom) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * freedom**2)


def _from_bins(bins: Sequence[float], value: float, span: float, count: int) -> Figure:
    centre = sum(bins) / len(bins)
    error = error_of_sum([each - centre for each in bins]) / span
    return Figure(value, max(0.0, value - error), value + error, count)


def _ranks(count: int, level: float) -> tuple[int, int]:
    """Between which order statistics (from 1 to `count`) the quantile lies with 95 %; 0 and
    `count + 1` are none."""
    centre = min(count, int((count + 1) * level))
    reach = ceil(8 * sqrt(count * level * (1 - level))) + 12
    first, last = max(0, centre - reach), min(count, centre + reach)
    chances = [_chance(count, level, hits) for hits in range(first, last + 1)]
    return first + _tail(chances), last + 1 - _tail(chances[::-1])


def _tail(chances: Sequence[float]) -> int:
    """How many of the first chances together are at most `TAIL`."""
    total = 0.0
    for index, chance in enumerate(chances):
        total += chance
        if total > TAIL:
            return index
    return len(chances)


def _chance(count: int, level: float, hits: int) -> float:
    """Of so many hits, in the binomial distribution."""
    ways = lgamma(count + 1) - lgamma(hits + 1) - lgamma(count - hits + 1)
    return exp(ways + hits * log(level) + (count - hits) * log(1 - level))
