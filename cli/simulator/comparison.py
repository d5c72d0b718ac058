"""Two runs against each other: by figure, and by request.

Runs of the same workload have the same requests, and are compared pair by pair: what makes a
request slow in both is no difference. Means differ by the mean of the pairs' differences. Quantiles
differ by the difference of each request's influence on them (Bahadur's representation, with the
density from neighbouring order statistics), over the same blocks as in `intervals.py`.
"""

from collections.abc import Sequence
from math import inf, nan, sqrt

import msgspec

from sps2.cli.simulator import intervals
from sps2.cli.simulator.intervals import Figure
from sps2.cli.simulator.outcomes import Outcome, Run
from sps2.cli.simulator.statistics import (
    METRICS,
    Objectives,
    Summary,
    figure,
    find_long_tokens,
    in_order,
    is_starved,
    summarise,
    waits_before_first,
)
from sps2.services.scheduler.plan import WAITS

COMPARED = (
    "ttft_s.all.mean",
    "ttft_s.all.p99",
    "ttft_s.short.mean",
    "ttft_s.short.p99",
    "ttft_s.long.mean",
    "ttft_s.long.p99",
    "tbt_s.all.mean",
    "tbt_s.all.p99",
    "itl_s.p99",
    "e2e_s.all.mean",
    "e2e_s.all.p99",
    "slowdown.all.mean",
    "slowdown.all.p99",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "requests_per_s",
    "goodput_share",
    "starved",
    "sent_bytes_per_request.all",
)
"""Figures that are compared by default."""
LEVEL = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
COMPUTING = "computing"
NOTABLE_S = 0.001
NOTABLE_SHARE = 0.02
"""Of the largest part: causes that changed less are not told."""


class Difference(msgspec.Struct, frozen=True):
    """A figure in two runs. change: the second's less the first's, with its 95 % interval.

    is_paired: the runs had the same requests.
    """

    name: str
    first: Figure
    second: Figure
    change: Figure
    is_paired: bool

    @property
    def is_distinct(self) -> bool:
        """Whether the two can be told apart: the interval of the change leaves out 0."""
        return self.change.low > 0 or self.change.high < 0

    @property
    def ratio(self) -> float:
        """The second over the first; NaN without a first."""
        return self.second.value / self.first.value if self.first.value else nan


class Shift(msgspec.Struct, frozen=True):
    """One request in two runs: its TTFT in the first and in the second, and why they differ.

    parts_s: seconds more in the second, by cause of waiting, and `computing`.
    """

    request: str
    policy: str
    ttft_s: float | None
    other_ttft_s: float | None
    parts_s: dict[str, float]
    why: str

    @property
    def change_s(self) -> float | None:
        if self.ttft_s is None or self.other_ttft_s is None:
            return None
        return self.other_ttft_s - self.ttft_s

    @property
    def in_words(self) -> str:
        """As "on lars, this request would have had a TTFT of 3 s instead of 12 s: ..."."""
        if self.other_ttft_s is None:
            return f"on {self.policy}, this request would have had no first token: {self.why}"
        now = "none" if self.ttft_s is None else f"{self.ttft_s:.3g} s"
        return (
            f"on {self.policy}, this request would have had a TTFT of {self.other_ttft_s:.3g} s "
            f"instead of {now}: {self.why}"
        )


class Comparison(msgspec.Struct, frozen=True):
    """A diff of two runs. shifts: the requests whose TTFT differs most, in order of that."""

    first: str
    second: str
    differences: list[Difference]
    shifts: list[Shift]


def compare(
    first: Run,
    second: Run,
    *,
    names: Sequence[str] = COMPARED,
    objectives: Objectives | None = None,
    long_tokens: int | None = None,
    most_shifts: int = 20,
) -> Comparison:
    """The diff of two runs: figures by name, as in `statistics.figure`, and requests."""
    if long_tokens is None:
        every = [each.prompt_tokens for run in (first, second) for each in run.outcomes]
        long_tokens = find_long_tokens(every)
    objectives = objectives or Objectives()
    summaries = [
        summarise(run, objectives=objectives, long_tokens=long_tokens) for run in (first, second)
    ]
    differences = [_difference(first, second, summaries, name) for name in names]
    shifts = counterfactuals(first, second)
    shifts.sort(key=lambda each: inf if each.change_s is None else -abs(each.change_s))
    return Comparison(first.policy, second.policy, differences, shifts[:most_shifts])


def are_distinct(
    first: Run, second: Run, name: str, *, objectives: Objectives | None = None
) -> bool:
    """Whether two runs can be told apart on a figure, with 95 % confidence."""
    compared = compare(first, second, names=[name], objectives=objectives, most_shifts=0)
    return compared.differences[0].is_distinct


def have_same_requests(first: Run, second: Run) -> bool:
    def known(run: Run) -> set[tuple[str, int]]:
        return {(each.request, each.prompt_tokens) for each in run.outcomes}

    return bool(first.outcomes) and known(first) == known(second)


def counterfactuals(run: Run, other: Run) -> list[Shift]:
    """What the other run made of each request of this one, in the order of arrival; without those
    that it did not have."""
    others = {each.request: each for each in other.outcomes}
    pairs = [(each, others.get(each.request)) for each in in_order(run)]
    return [shift_of(each, found, other.policy) for each, found in pairs if found is not None]


def shift_of(outcome: Outcome, other: Outcome, policy: str) -> Shift:
    """Of one request: its outcome, and that on another policy."""
    here, there = _parts(outcome), _parts(other)
    causes = sorted({*here, *there})
    parts_s = {cause: there.get(cause, 0.0) - here.get(cause, 0.0) for cause in causes}
    parts_s = {cause: change for cause, change in parts_s.items() if abs(change) >= NOTABLE_S}
    return Shift(
        outcome.request,
        policy,
        outcome.ttft_s,
        other.ttft_s,
        parts_s,
        _why(outcome, other, parts_s),
    )


def in_words(cause: str) -> str:
    """A cause of waiting for a sentence: waiting for its turn."""
    if cause in WAITS:
        return f"waiting for {WAITS[cause]}"
    return cause if cause == COMPUTING else f"being {cause}" if cause == "held back" else cause


def _parts(outcome: Outcome) -> dict[str, float]:
    found = waits_before_first(outcome)
    if outcome.ttft_s is not None:
        found[COMPUTING] = max(0.0, outcome.ttft_s - sum(found.values()))
    return found


def _why(outcome: Outcome, other: Outcome, parts_s: dict[str, float]) -> str:
    if other.error and other.error != outcome.error:
        return f"it fails there ({other.error})"
    if other.first_s is None:
        return "the run ends before"
    least = max((abs(change) for change in parts_s.values()), default=0.0) * NOTABLE_SHARE
    reasons = [
        f"{abs(change):.3g} s {'more' if change > 0 else 'less'} {in_words(cause)}"
        for cause, change in sorted(parts_s.items(), key=lambda each: -abs(each[1]))[:3]
        if abs(change) >= least
    ]
    if other.degree != outcome.degree:
        reasons.append(f"degree {other.degree} instead of {outcome.degree}")
    if other.cached_tokens != outcome.cached_tokens:
        more = other.cached_tokens - outcome.cached_tokens
        reasons.append(f"{abs(more):,} tokens {'more' if more > 0 else 'fewer'} in the cache")
    return "; ".join(reasons) or "nothing differs"


def _difference(first: Run, second: Run, summaries: Sequence[Summary], name: str) -> Difference:
    one, two = (figure(each, name) for each in summaries)
    is_paired = have_same_requests(first, second)
    value = two.value - one.value
    error = _paired_error(first, second, summaries[0], name) if is_paired else None
    if error is None:
        below = sqrt(_sampled(two, second, name, -1) + _sampled(one, first, name, 1))
        above = sqrt(_sampled(two, second, name, 1) + _sampled(one, first, name, -1))
    else:
        below = above = error
    margin = _margin(first, second, one, two) if _is_timed(name) else 0.0
    change = Figure(
        value,
        value - sqrt(below**2 + margin**2),
        value + sqrt(above**2 + margin**2),
        min(one.count, two.count),
    )
    return Difference(name, one, two, change, error is not None)


def _is_timed(name: str) -> bool:
    """Whether the profile's margin is in a figure as a share of it."""
    return not name.startswith(("sent_bytes", "starved", "cached", "degree", "goodput_share"))


def _sampled(of: Figure, run: Run, name: str, side: int) -> float:
    """The square of the distance from a figure to its limit on that side, without the margin."""
    distance = of.high - of.value if side > 0 else of.value - of.low
    margin = run.margin * of.value if _is_timed(name) else 0.0
    return max(0.0, distance**2 - margin**2)


def _margin(first: Run, second: Run, one: Figure, two: Figure) -> float:
    """Of the change. The error of one profile is the same in both runs; those of two are not."""
    if first.profile == second.profile:
        return max(first.margin, second.margin) * abs(two.value - one.value)
    return sqrt((first.margin * one.value) ** 2 + (second.margin * two.value) ** 2)


def _paired_error(first: Run, second: Run, summary: Summary, name: str) -> float | None:
    """Half the interval of the difference, pair by pair; None if the figure isn't by request."""
    pairs = _pairs(first, second, summary, name)
    if pairs is None:
        return None
    statistic = name.rpartition(".")[2]
    if len(pairs) < 2:
        return 0.0 if pairs else nan
    ones, twos = [a for a, _ in pairs], [b for _, b in pairs]
    if statistic not in LEVEL:
        middle = sum(b - a for a, b in pairs) / len(pairs)
        return intervals.error_of_sum([b - a - middle for a, b in pairs]) / len(pairs)
    level = LEVEL[statistic]
    if len(pairs) * (1 - level) < 1:  # fewer than one request lies above it
        return inf if ones != twos else 0.0
    influence = [
        b - a for a, b in zip(_influences(ones, level), _influences(twos, level), strict=True)
    ]
    return intervals.error_of_sum(influence) / len(pairs)


def _pairs(
    first: Run, second: Run, summary: Summary, name: str
) -> list[tuple[float, float]] | None:
    """The values of each request in both runs, in the order of arrival, if both have one."""
    metric, _, rest = name.partition(".")
    group = rest.partition(".")[0]
    others = {each.request: each for each in second.outcomes}
    pairs = [(each, others[each.request]) for each in in_order(first)]
    if metric in METRICS:
        if group != "all":
            is_long = group == "long"
            pairs = [p for p in pairs if (p[0].prompt_tokens > summary.long_tokens) == is_long]
        values = [(METRICS[metric](a), METRICS[metric](b)) for a, b in pairs]
        return [(a, b) for a, b in values if a is not None and b is not None]
    if metric == "goodput_share":
        met = summary.objectives.are_met
        return [(float(met(a)), float(met(b))) for a, b in pairs]
    if metric == "starved":
        stops = (first.stopped_s, second.stopped_s)
        return [(float(is_starved(a, stops[0])), float(is_starved(b, stops[1]))) for a, b in pairs]
    if metric == "sent_bytes_per_request":
        return [(_sent(a, rest), _sent(b, rest)) for a, b in pairs]
    return None


def _sent(outcome: Outcome, kind: str) -> float:
    return sum(outcome.sent_bytes.values()) if kind == "all" else outcome.sent_bytes.get(kind, 0.0)


def _influences(values: Sequence[float], level: float) -> list[float]:
    """How much each value moves the quantile, times their number; the sum is about 0."""
    ordered = sorted(values)
    count = len(ordered)
    reach = min(1.5 * sqrt(level * (1 - level) / count), 1 - level)
    low, high = max(0.0, level - reach), min(1.0, level + reach)
    slope = (intervals.at(ordered, high) - intervals.at(ordered, low)) / (high - low)
    quantile = intervals.at(ordered, level)
    share = sum(each <= quantile for each in ordered) / count
    return [slope * (share - (each <= quantile)) for each in values]
