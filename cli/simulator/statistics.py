"""What a run gives in all: latencies, throughput, goodput, bytes, waits, each with its interval.

Intervals join the error of the sample of requests (`intervals.py`) and the relative error of
simulated times, `run.margin`. The latter is of one prediction; near saturation a queue enlarges
errors of that kind, so that a wide interval there is still too narrow.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import msgspec

from sps2.cli.simulator import intervals
from sps2.cli.simulator.intervals import UNKNOWN, Figure
from sps2.cli.simulator.outcomes import Outcome, Run
from sps2.cli.simulator.verdict import Verdict, judge, waiting_over_time

LEVELS = (0.5, 0.9, 0.99)
STARVED_SLOWDOWN = 10.0
STARVED_WAIT_S = 10.0
CLEAR_GAP = 2.0
"""Ratio of two neighbouring prompt lengths that separates short prompts from long ones."""


class Objectives(msgspec.Struct, frozen=True):
    """What a request must meet to count for goodput; None: anything. tbt_s: the mean of a
    request's times between tokens. It must have ended without an error in any case."""

    ttft_s: float | None = None
    tbt_s: float | None = None
    e2e_s: float | None = None
    slowdown: float | None = None

    def are_met(self, outcome: Outcome, factor: float = 1.0) -> bool:
        """factor: what its times are multiplied with."""
        if outcome.ended_s is None or outcome.error:
            return False
        pairs = (
            (self.ttft_s, outcome.ttft_s),
            (self.tbt_s, outcome.tbt_s),
            (self.e2e_s, outcome.e2e_s),
            (self.slowdown, outcome.slowdown),
        )
        return all(
            limit is None or value is None or value * factor <= limit for limit, value in pairs
        )


class Spread(msgspec.Struct, frozen=True):
    """Of a time: its mean and percentiles."""

    mean: Figure = UNKNOWN
    p50: Figure = UNKNOWN
    p90: Figure = UNKNOWN
    p99: Figure = UNKNOWN


class Groups(msgspec.Struct, frozen=True):
    """Of all requests, and of those with short and with long prompts."""

    all: Spread = Spread()
    short: Spread = Spread()
    long: Spread = Spread()


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A run's figures.

    completed: ended without an error. failed: with one; errors: by text. unfinished: neither.
    long_tokens: prompts over that are long.
    The profile's margin widens times; not the slowdown, where it is in both times, nor throughputs
        of a stable run, which are those of the arrivals.
    ttft_s, slowdown: of all requests that got a first token; e2e_s: of those that completed;
        tbt_s: a request's mean, of those that completed with two tokens or more; itl_s: of single
        tokens. Failed requests are missing in them, but count against goodput.
    prefill_tokens_per_s: prompt tokens, cached ones too, of requests that got a first token, by the
        time from the first arrival to the last first token. decode_tokens_per_s: tokens after the
        first of requests that completed, by the time from the first first token to the last end.
        requests_per_s: that completed, by the time from the first arrival to the last end.
    goodput_share, goodput_per_s: of requests that met `objectives`.
    cached_share: of prompt tokens. degree: prefill shards of a request, of those that started.
    sent_bytes: by kind, in all; sent_bytes_per_request: by kind; `all` is their sum.
    waits_s: seconds that a request was not computed before its first token, on average, by cause.
    starved: share of requests whose TTFT was over `STARVED_SLOWDOWN` times, and over
        `STARVED_WAIT_S` more than, on an idle cluster; until the end of the run if none came.
    waiting: mean number in the queue over the arrivals' time; most_waiting: the largest.
    replanned: requests that were planned more than once.
    """

    policy: str
    cluster: str
    workload: str
    model: str
    profile: str
    rate: float
    margin: float
    seed: int
    requests: int
    completed: int
    failed: int
    unfinished: int
    errors: dict[str, int]
    long_tokens: int
    objectives: Objectives
    ttft_s: Groups
    tbt_s: Groups
    itl_s: Spread
    e2e_s: Groups
    slowdown: Groups
    prefill_tokens_per_s: Figure
    decode_tokens_per_s: Figure
    requests_per_s: Figure
    goodput_share: Figure
    goodput_per_s: Figure
    cached_share: Figure
    degree: Figure
    sent_bytes: dict[str, Figure]
    sent_bytes_per_request: dict[str, Figure]
    waits_s: dict[str, Figure]
    starved: Figure
    waiting: Figure
    most_waiting: int
    preemptions: int
    replanned: int
    broken_rules: int
    verdict: Verdict


METRICS: dict[str, Callable[[Outcome], float | None]] = {
    "ttft_s": lambda outcome: outcome.ttft_s,
    "tbt_s": lambda outcome: None if outcome.error else outcome.tbt_s,
    "e2e_s": lambda outcome: None if outcome.error else outcome.e2e_s,
    "slowdown": lambda outcome: outcome.slowdown,
}
"""Of one request; None if it has none."""


def summarise(
    run: Run, *, objectives: Objectives | None = None, long_tokens: int | None = None
) -> Summary:
    """The figures of a run. long_tokens: None: as `find_long_tokens` finds."""
    outcomes = in_order(run)
    objectives = objectives or Objectives()
    if long_tokens is None:
        long_tokens = find_long_tokens([each.prompt_tokens for each in outcomes])
    long = [each for each in outcomes if each.prompt_tokens > long_tokens]
    short = [each for each in outcomes if each.prompt_tokens <= long_tokens]
    groups = {
        name: Groups(
            *(
                _spread(each, metric, 0.0 if name == "slowdown" else run.margin)
                for each in (outcomes, short, long)
            )
        )
        for name, metric in METRICS.items()
    }
    verdict = judge(run)
    served = 0.0 if verdict.state == "stable" else run.margin
    completed = [each for each in outcomes if is_completed(each)]
    kinds = sorted({kind for each in outcomes for kind in each.sent_bytes})
    sent = {
        "all": intervals.mean([sum(each.sent_bytes.values()) for each in outcomes]),
        **{k: intervals.mean([o.sent_bytes.get(k, 0.0) for o in outcomes]) for k in kinds},
    }
    causes = sorted({delay.cause for each in outcomes for delay in each.delays})
    waited = [waits_before_first(each) for each in outcomes]
    prompts = [float(each.prompt_tokens) for each in outcomes]
    cached = [float(each.cached_tokens) for each in outcomes]
    errors = [each.error for each in outcomes if each.error]
    start, stop = (outcomes[0].arrived_s, outcomes[-1].arrived_s) if outcomes else (0.0, 0.0)
    queue = waiting_over_time(run)
    good = _goodput(outcomes, objectives, run.margin)
    return Summary(
        policy=run.policy,
        cluster=run.cluster,
        workload=run.workload,
        model=run.model,
        profile=run.profile,
        rate=run.rate,
        margin=run.margin,
        seed=run.seed,
        requests=len(outcomes),
        completed=len(completed),
        failed=len(errors),
        unfinished=len(outcomes) - len(completed) - len(errors),
        errors={error: errors.count(error) for error in sorted(set(errors))},
        long_tokens=long_tokens,
        objectives=objectives,
        ttft_s=groups["ttft_s"],
        tbt_s=groups["tbt_s"],
        itl_s=_between_tokens(run, completed),
        e2e_s=groups["e2e_s"],
        slowdown=groups["slowdown"],
        **_throughput(outcomes, completed, served),
        goodput_share=good,
        goodput_per_s=_good_rate(outcomes, objectives, served),
        cached_share=intervals.ratio(cached, prompts),
        degree=intervals.mean([float(each.degree) for each in outcomes if each.degree]),
        sent_bytes={kind: figure.times(len(outcomes)) for kind, figure in sent.items()},
        sent_bytes_per_request=sent,
        waits_s={
            cause: intervals.mean([each.get(cause, 0.0) for each in waited]).widened(run.margin)
            for cause in causes
        },
        starved=intervals.share([is_starved(each, run.stopped_s) for each in outcomes]),
        waiting=intervals.level_over_time(queue, start, stop),
        most_waiting=max((count for _, count in queue), default=0),
        preemptions=run.preemptions,
        replanned=sum(each.epochs > 0 for each in outcomes),
        broken_rules=run.broken_rules,
        verdict=verdict,
    )


def figure(summary: Summary, name: str) -> Figure:
    """A figure by its name, for example `ttft_s.short.p99`, `goodput_share`, `sent_bytes.kv`."""
    found: object = summary
    for part in name.split("."):
        found = found.get(part, UNKNOWN) if isinstance(found, dict) else getattr(found, part)
    if not isinstance(found, Figure):
        raise AttributeError(f"{name} is no figure of a summary")
    return found


def in_order(run: Run) -> list[Outcome]:
    """A run's requests in the order of arrival."""
    return sorted(run.outcomes, key=lambda each: each.arrived_s)


def find_long_tokens(lengths: Iterable[int]) -> int:
    """The prompt length above which prompts are long.

    Where the lengths leave a clear gap between their 80th and 99th percentile (the widest ratio of
    neighbours, at least `CLEAR_GAP`), the length below it; otherwise their 95th percentile.
    """
    ordered = sorted(lengths)
    if not ordered:
        return 0
    first = max(0, len(ordered) * 4 // 5 - 1)
    top = ordered[first : -(-len(ordered) * 99 // 100) + 1]
    gaps = [(b / max(a, 1), a) for a, b in pairwise(top)]
    widest, below = max(gaps, default=(0.0, 0))
    return below if widest >= CLEAR_GAP else int(intervals.at(ordered, 0.95))


def is_completed(outcome: Outcome) -> bool:
    return outcome.ended_s is not None and not outcome.error


def is_starved(outcome: Outcome, stopped_s: float) -> bool:
    """See `Summary.starved`. One that failed without a first token waited until then."""
    ends = (outcome.first_s, outcome.ended_s, stopped_s)
    waited_s = next(each for each in ends if each is not None) - outcome.arrived_s
    return (
        waited_s > STARVED_SLOWDOWN * outcome.alone_s
        and waited_s - outcome.alone_s > STARVED_WAIT_S
    )


def waits_before_first(outcome: Outcome) -> dict[str, float]:
    """Seconds before its first token in which it was not computed, by cause."""
    found: dict[str, float] = {}
    for delay in outcome.delays:
        stop_s = delay.stop_s if outcome.first_s is None else min(delay.stop_s, outcome.first_s)
        if stop_s > delay.start_s:
            found[delay.cause] = found.get(delay.cause, 0.0) + stop_s - delay.start_s
    return found


def _spread(
    outcomes: Sequence[Outcome], metric: Callable[[Outcome], float | None], margin: float
) -> Spread:
    values = [value for each in outcomes if (value := metric(each)) is not None]
    found = [intervals.mean(values), *intervals.quantiles(values, LEVELS)]
    return Spread(*(each.widened(margin) for each in found))


def _between_tokens(run: Run, completed: Sequence[Outcome]) -> Spread:
    """Of single tokens. For the interval a request's tokens count as one: they are alike."""
    tokens = sum(run.steps.values())
    if not tokens:
        return Spread()
    answers = [each for each in completed if each.answer_tokens > 1]
    middle = sum(gap * count for gap, count in run.steps.items()) / tokens
    spans = [(each.ended_s or 0.0) - (each.first_s or each.arrived_s) for each in answers]
    ratio = intervals.ratio(spans, [each.answer_tokens - 1.0 for each in answers])
    scale = middle / ratio.value if ratio.is_known and ratio.value else 1.0
    low, high = (ratio.low, ratio.high) if ratio.is_known else (middle, middle)
    mean = Figure(middle, min(middle, low * scale), max(middle, high * scale), round(tokens))
    percentiles = intervals.weighted_quantiles(run.steps, LEVELS, max(1, len(answers)))
    return Spread(*(each.widened(run.margin) for each in (mean, *percentiles)))


def _throughput(
    outcomes: Sequence[Outcome], completed: Sequence[Outcome], margin: float
) -> dict[str, Figure]:
    start = outcomes[0].arrived_s if outcomes else 0.0
    firsts = [
        (each.first_s, float(each.prompt_tokens)) for each in outcomes if each.first_s is not None
    ]
    ends = [(each.ended_s or 0.0, float(max(0, each.answer_tokens - 1))) for each in completed]
    failures = [each.ended_s or 0.0 for each in outcomes if each.error]
    last_first_s = max([*(time for time, _ in firsts), *failures], default=0.0)
    first_first_s = min((time for time, _ in firsts), default=0.0)
    last_s = max([*(time for time, _ in ends), *failures], default=0.0)
    found = {
        "prefill_tokens_per_s": intervals.rate(firsts, start, last_first_s),
        "decode_tokens_per_s": intervals.rate(ends, first_first_s, last_s),
        "requests_per_s": intervals.rate([(time, 1.0) for time, _ in ends], start, last_s),
    }
    return {name: each.widened(margin) for name, each in found.items()}


def _goodput(outcomes: Sequence[Outcome], objectives: Objectives, margin: float) -> Figure:
    sampled = intervals.share([objectives.are_met(each) for each in outcomes])
    if not sampled.is_known:
        return sampled
    worse, better = (
        sum(objectives.are_met(each, factor) for each in outcomes) / len(outcomes)
        for factor in (1 + margin, max(0.0, 1 - margin))
    )
    low = ((sampled.value - sampled.low) ** 2 + (sampled.value - worse) ** 2) ** 0.5
    high = ((sampled.high - sampled.value) ** 2 + (better - sampled.value) ** 2) ** 0.5
    return Figure(
        sampled.value,
        max(0.0, sampled.value - low),
        min(1.0, sampled.value + high),
        sampled.count,
    )


def _good_rate(outcomes: Sequence[Outcome], objectives: Objectives, margin: float) -> Figure:
    ends = [each.ended_s for each in outcomes if each.ended_s is not None]
    if not ends:
        return UNKNOWN
    met = [(each.ended_s or 0.0, 1.0) for each in outcomes if objectives.are_met(each)]
    start = outcomes[0].arrived_s
    if not met:
        return intervals.exactly(0.0, len(outcomes))
    return intervals.rate(met, start, max(ends)).widened(margin)
