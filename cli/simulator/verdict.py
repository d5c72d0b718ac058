"""Whether a cluster keeps up with the arrivals of a run."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from sps2.cli.simulator.outcomes import Outcome, Run

FAILING = 0.01
GROWTH = 4 / 3
"""From one third of the arrivals' time to the next. A queue that grows in proportion to time has 3
times, then 5/3 times as much in it."""
LEAST_ARRIVALS = 20
"""With fewer, growth cannot be told from chance."""
LEAST_WAITING = 5
REST = 0.05
"""Of the arrivals' time, or of their work: what is left if load exceeds capacity by 5 %."""
LONG_BUSY = 0.25
"""Of the arrivals' time: a queue that is not empty for longer than that is a backlog."""

State = Literal["stable", "backlogged", "overloaded", "failing"]


class Verdict(msgspec.Struct, frozen=True):
    """How the requests without a first token developed: those that wait or are in prefill.

    overloaded: they grow with time, so that no figure of the run says what a longer one would
        give. From each third of the arrivals' time to the next, requests or their work (`alone_s`)
        grow by `GROWTH` at least; in its last tenth at least `LEAST_WAITING` requests, or `REST` of
        all work, is left; and after the last arrival it takes as long as the longest prompt takes
        alone, and `REST` of the arrivals' time, until all have a first token.
    backlogged: not overloaded, but a queue takes long to drain: more requests than the cluster has
        shards wait for over `LONG_BUSY` of the arrivals' time without a break; or, after the last
        arrival, it takes over twice as long as the longest prompt takes alone, and over 2 `REST` of
        the arrivals' time, until all have a first token.
    stable: neither.
    failing: whatever the queue, more than `FAILING` of the requests were not answered.

    reason: in a sentence. waiting: their mean number in each third of the arrivals' time.
    drain_s: from the last arrival to the last first token. busy_s: the longest time with more of
        them than shards.
    """

    state: State
    reason: str
    waiting: tuple[float, float, float] = (0.0, 0.0, 0.0)
    drain_s: float = 0.0
    busy_s: float = 0.0


def judge(run: Run) -> Verdict:
    """The verdict on a run; see `Verdict`."""
    if not run.outcomes:
        return Verdict("stable", "no requests")
    failed = sum(bool(each.error) or each.ended_s is None for each in run.outcomes)
    if failed > FAILING * len(run.outcomes):
        return Verdict("failing", f"{failed} of {len(run.outcomes)} requests were not answered")
    waits = [_Waiting.of(each, run) for each in run.outcomes]
    start, stop = min(w.start_s for w in waits), max(w.start_s for w in waits)
    span = stop - start
    drain_s = max(w.stop_s for w in waits) - stop
    alone_s = max(each.alone_s for each in run.outcomes)
    busy_s = _longest_busy(waits, max(1, len(run.shards)), stop)
    thirds = [_mean(waits, start + i * span / 3, start + (i + 1) * span / 3) for i in range(3)]
    requests = (thirds[0][0], thirds[1][0], thirds[2][0])
    work = [each[1] for each in thirds]
    at_end = _mean(waits, stop - span / 10, stop)
    whole = sum(w.work_s for w in waits)
    grows = (_grows(requests) and at_end[0] >= LEAST_WAITING) or (
        _grows(work) and at_end[1] >= REST * whole
    )
    found = (requests, drain_s, busy_s)
    if len(waits) >= LEAST_ARRIVALS and span and grows and drain_s >= alone_s + REST * span:
        first, middle, last = requests
        return Verdict(
            "overloaded",
            f"requests without a first token grew from {first:.1f} over {middle:.1f} to "
            f"{last:.1f} on average in the thirds of {span:.0f} s of arrivals, and took "
            f"{drain_s:.0f} s more",
            *found,
        )
    if busy_s > LONG_BUSY * span and busy_s > 2 * alone_s:
        return Verdict(
            "backlogged",
            f"for {busy_s:.0f} s without a break more requests than shards had no first token",
            *found,
        )
    if drain_s > max(2 * alone_s, 2 * REST * span):
        return Verdict(
            "backlogged",
            f"{drain_s:.0f} s passed from the last arrival until all had a first token",
            *found,
        )
    return Verdict(
        "stable",
        f"{sum(requests) / 3:.1f} requests had no first token yet on average, without a trend",
        *found,
    )


def waiting_over_time(run: Run) -> list[tuple[float, int]]:
    """How many requests wait, at the times at which that changes: `run.queue`, or else how many
    have no first token yet."""
    if run.queue:
        return run.queue
    return _count([_Waiting.of(each, run) for each in run.outcomes])


@dataclass(frozen=True)
class _Waiting:
    """A request until its first token, or until it failed. work_s: what it needs alone."""

    start_s: float
    stop_s: float
    work_s: float

    @classmethod
    def of(cls, outcome: Outcome, run: Run) -> "_Waiting":
        ends = (outcome.first_s, outcome.ended_s, run.stopped_s)
        stop_s = next(each for each in ends if each is not None)
        return cls(outcome.arrived_s, max(outcome.arrived_s, stop_s), outcome.alone_s)


def _mean(waits: Sequence[_Waiting], start: float, stop: float) -> tuple[float, float]:
    """Mean over time of the requests, and of their work."""
    if stop <= start:
        return 0.0, 0.0
    count = work = 0.0
    for each in waits:
        shared = min(stop, each.stop_s) - max(start, each.start_s)
        if shared > 0:
            count += shared
            work += shared * each.work_s
    return count / (stop - start), work / (stop - start)


def _grows(thirds: Sequence[float]) -> bool:
    first, middle, last = thirds
    return last > 0 and middle >= GROWTH * first and last >= GROWTH * middle


def _count(waits: Sequence[_Waiting]) -> list[tuple[float, int]]:
    starts = sorted(each.start_s for each in waits)
    stops = sorted(each.stop_s for each in waits)
    return [
        (time, bisect_right(starts, time) - bisect_right(stops, time))
        for time in sorted({*starts, *stops})
    ]


def _longest_busy(waits: Sequence[_Waiting], shards: int, last_arrival_s: float) -> float:
    """The longest time during which more requests than shards wait, among the arrivals."""
    longest, since = 0.0, None
    for time, count in _count(waits):
        if since is None and count > shards and time <= last_arrival_s:
            since = time
        elif since is not None and count <= shards:
            longest, since = max(longest, time - since), None
    return longest
