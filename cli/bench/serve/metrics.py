"""What is computed of a run, by the definitions of `vllm bench serve`."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

from sps2.cli.bench.serve.reply import Reply
from sps2.common.errors import Invalid

METRICS = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
    "itl": "inter-token latency",
    "e2el": "end-to-end latency",
    "client_queue_time": "wait for a place among --max-concurrency",
}
GOALS = ("ttft", "tpot", "e2el")
"""Metrics that a goodput can be about."""


@dataclass(frozen=True)
class Summary:
    """The mean, median, standard deviation and percentiles of one metric, in ms."""

    mean: float
    median: float
    std: float
    percentiles: Mapping[float, float]


@dataclass(frozen=True)
class Result:
    """The figures of a run; rates are per second of `duration_s`."""

    duration_s: float
    completed: int
    failed: int
    unfinished: int
    unsent: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    good: int | None
    """Requests that met all goals; None without goals."""
    peak_output_tokens: float
    """The most chunks that came within one second."""
    peak_requests: int
    late_ms: float
    """The 99th percentile of how long after its time a request was sent by this client, not
    counting waits for `--max-concurrency`."""
    summaries: Mapping[str, Summary]
    errors: Mapping[str, int]

    @property
    def request_throughput(self) -> float:
        return self._rate(self.completed)

    @property
    def request_goodput(self) -> float | None:
        return None if self.good is None else self._rate(self.good)

    @property
    def output_throughput(self) -> float:
        return self._rate(self.output_tokens)

    @property
    def total_token_throughput(self) -> float:
        return self._rate(self.input_tokens + self.output_tokens)

    def _rate(self, count: float) -> float:
        return count / self.duration_s if self.duration_s else 0.0


def computed(
    replies: Sequence[Reply],
    duration_s: float,
    percents: Sequence[float],
    goals: Mapping[str, float],
    unsent: int = 0,
) -> Result:
    """The figures of a run. goals: at most so many ms for a metric of each request."""
    done = [reply for reply in replies if reply.state == "done"]
    failed = [reply for reply in replies if reply.state == "failed"]
    values_s = {name: samples(done, name) for name in METRICS}
    late_s = [reply.ready_s - reply.due_s for reply in replies if reply.ready_s]
    return Result(
        duration_s=duration_s,
        completed=len(done),
        failed=len(failed),
        unfinished=len(replies) - len(done) - len(failed),
        unsent=unsent,
        input_tokens=sum(reply.prompt_tokens for reply in done),
        cached_tokens=sum(reply.cached_tokens for reply in done),
        output_tokens=sum(reply.answer_tokens for reply in done),
        good=sum(_is_good(reply, goals) for reply in done) if goals else None,
        peak_output_tokens=_peak_tokens(done),
        peak_requests=_peak_requests(done),
        late_ms=1000 * percentile(sorted(late_s), 99),
        summaries={name: _summary(values, percents) for name, values in values_s.items()},
        errors=Counter(reply.error for reply in failed),
    )


def samples(done: Sequence[Reply], name: str) -> list[float]:
    """The values of a metric in seconds: one for each request, but for `itl` one for each gap."""
    if name == "itl":
        return [after - before for reply in done for before, after in _gaps(reply)]
    if name == "tpot":
        return [reply.tpot_s for reply in done if reply.answer_tokens > 1]
    return [_of(reply, name) for reply in done]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear between the two nearest of sorted values; 0 of none."""
    if not ordered:
        return 0.0
    rest, below = math.modf((len(ordered) - 1) * percent / 100)
    low = ordered[int(below)]
    return low + rest * (ordered[min(int(below) + 1, len(ordered) - 1)] - low)


def parse_goals(texts: Sequence[str]) -> dict[str, float]:
    """Goals such as `ttft:200` or `ttft:200 tpot:50`, in ms. Raises Invalid."""
    goals = {}
    for text in " ".join(texts).replace(",", " ").split():
        name, _, value = text.partition(":")
        try:
            goals[name] = float(value)
        except ValueError:
            goals[name] = math.nan
        if name not in GOALS or not goals[name] >= 0:
            raise Invalid(
                f"--goodput {text}: write a metric of {', '.join(GOALS)} and milliseconds, such "
                "as ttft:200"
            )
    return goals


def _of(reply: Reply, name: str) -> float:
    values = {
        "ttft": reply.ttft_s,
        "tpot": reply.tpot_s,
        "e2el": reply.e2el_s,
        "client_queue_time": reply.queue_s,
    }
    return values[name]


def _is_good(reply: Reply, goals: Mapping[str, float]) -> bool:
    return all(1000 * _of(reply, name) <= most_ms for name, most_ms in goals.items())


def _gaps(reply: Reply) -> Iterable[tuple[float, float]]:
    return itertools.pairwise(reply.stamps_s)


def _summary(values_s: Sequence[float], percents: Sequence[float]) -> Summary:
    ordered = sorted(1000 * value for value in values_s)
    if not ordered:
        return Summary(0.0, 0.0, 0.0, dict.fromkeys(percents, 0.0))
    return Summary(
        fmean(ordered),
        median(ordered),
        pstdev(ordered),
        {percent: percentile(ordered, percent) for percent in percents},
    )


def _peak_tokens(done: Sequence[Reply]) -> float:
    start_s = min((reply.sent_s for reply in done), default=0.0)
    counts = Counter(int(stamp - start_s) for reply in done for stamp in reply.stamps_s)
    return float(max(counts.values(), default=0))


def _peak_requests(done: Sequence[Reply]) -> int:
    changes = sorted(
        change
        for reply in done
        for change in ((reply.sent_s, 1), (reply.sent_s + reply.e2el_s, -1))
    )
    return max(itertools.accumulate(step for _, step in changes), default=0)
