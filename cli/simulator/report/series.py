"""Points of a run's plots, few enough to draw."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import msgspec

from sps2.cli.simulator.intervals import Figure
from sps2.cli.simulator.outcomes import Activity, Run
from sps2.cli.simulator.report.words import labels
from sps2.cli.simulator.statistics import METRICS, Summary, figure

COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#aa3377",
    "#66ccee",
    "#ee7733",
    "#009988",
    "#999999",
    "#994455",
)
"""Colours that colour-blind people can distinguish. Source: Paul Tol's bright scheme, plus some."""
CURVE_POINTS = 160
LEAST_BUSY = 0.02
"""Of a column's time: a shard that computed for less is shown as idle."""


def at_one_rate(summaries: Sequence[Summary], rate: float | None = None) -> list[int]:
    """Places of the runs at the rate at which to compare policies in detail: by default the highest
    one that any of them bears, else the lowest."""
    rates = sorted({each.rate for each in summaries})
    if rate is None:
        borne = [each.rate for each in summaries if each.verdict.state != "overloaded"]
        rate = max(borne, default=rates[0] if rates else 0.0)
    return [place for place, each in enumerate(summaries) if each.rate == rate]


def values_of(
    run: Run, metric: str, *, above: int = -1, up_to: float = float("inf")
) -> list[float]:
    """A metric of the requests whose prompts have more than `above` and at most `up_to` tokens."""
    found = (METRICS[metric](each) for each in run.outcomes if above < each.prompt_tokens <= up_to)
    return [value for value in found if value is not None]


def cumulative(values: Sequence[float]) -> list[tuple[float, float]]:
    """Points (value, share of values up to it), in order; with the first and the last value."""
    ordered = sorted(values)
    count = len(ordered)
    places: Sequence[int] = range(count)
    if count > CURVE_POINTS:
        # Half of the points for the last tenth, where policies differ.
        half = CURVE_POINTS // 2
        ninth = count * 9 // 10
        spread = [ninth * i // half for i in range(half)]
        spread += [ninth + (count - 1 - ninth) * i // (half - 1) for i in range(half)]
        places = sorted(set(spread))
    return [(ordered[place], (place + 1) / count) for place in places]


def by_rate(summaries: Sequence[Summary], name: str) -> dict[str, list[tuple[float, Figure]]]:
    """Points (rate, figure) in the order of rates, by what the runs differ in besides the rate."""
    alike: dict[tuple[str, ...], list[Summary]] = {}
    for each in summaries:
        alike.setdefault(_but_rate(each), []).append(each)
    names = labels([msgspec.structs.replace(e[0], rate=0.0, seed=0) for e in alike.values()])
    return {
        label: sorted(
            ((each.rate, found) for each in group if (found := figure(each, name)).is_known),
            key=lambda point: point[0],
        )
        for label, group in zip(names, alike.values(), strict=True)
    }


def stepped(
    points: Sequence[tuple[float, float]], stop: float, columns: int
) -> list[tuple[float, float]]:
    """The largest value in each of `columns` equal times from 0 to `stop`, for a line."""
    if stop <= 0:
        return []
    found = [0.0] * columns
    steps = [*points, (stop, 0.0)]
    for (since, value), (until, _) in pairwise(steps):
        first = min(columns - 1, max(0, int(since / stop * columns)))
        last = min(columns - 1, max(first, int(until / stop * columns)))
        for column in range(first, last + 1):
            found[column] = max(found[column], value)
    return [((column + 0.5) * stop / columns, value) for column, value in enumerate(found)]


@dataclass(frozen=True)
class Segment:
    """What a shard did in adjacent columns of a timeline, all alike.

    request: of most of the prefill in it; empty: no prefill. sequences: of decode, on average over
        the time; 0: no decode.
    """

    first: int
    count: int
    request: str
    sequences: float
    is_lost: bool


def timeline(run: Run, columns: int) -> dict[str, list[Segment]]:
    """What each shard did, in columns of equal time from 0 to the end; without idle ones."""
    stop = max([run.stopped_s, *(each.stop_s for each in run.activities)], default=0.0)
    shards = dict.fromkeys([*run.shards, *(each.shard for each in run.activities)])
    found: dict[str, list[Segment]] = {shard: [] for shard in shards}
    if stop <= 0:
        return found
    by_shard: dict[str, list[Activity]] = {shard: [] for shard in shards}
    for each in run.activities:
        by_shard[each.shard].append(each)
    width = stop / columns
    return {shard: _segments(each, width, columns) for shard, each in by_shard.items()}


def _segments(activities: Sequence[Activity], width: float, columns: int) -> list[Segment]:
    prefill: dict[int, dict[str, float]] = {}
    decode: dict[int, tuple[float, float]] = {}
    lost: set[int] = set()
    for each in activities:
        first = min(columns - 1, max(0, int(each.start_s / width)))
        last = min(columns - 1, int(each.stop_s / width))
        for column in range(first, last + 1):
            start, stop = max(each.start_s, column * width), min(each.stop_s, (column + 1) * width)
            seconds = max(0.0, stop - start)
            if each.kind == "lost":
                lost.add(column)
            elif each.kind == "prefill":
                of = prefill.setdefault(column, {})
                of[each.request] = of.get(each.request, 0.0) + seconds
            else:
                time, sequences = decode.get(column, (0.0, 0.0))
                decode[column] = (time + seconds, sequences + seconds * each.sequences)
    found: list[Segment] = []
    for column in sorted({*prefill, *decode, *lost}):
        requests = prefill.get(column, {})
        if sum(requests.values()) < LEAST_BUSY * width:
            requests = {}
        time, total = decode.get(column, (0.0, 0.0))
        sequences = float(f"{total / width:.2g}") if time >= LEAST_BUSY * width else 0.0
        request = max(requests, key=lambda name: requests[name]) if requests else ""
        new = Segment(column, 1, request, sequences, False)
        if column in lost:
            new = Segment(column, 1, "", 0.0, True)
        if not (new.request or new.sequences or new.is_lost):
            continue
        before = found[-1] if found else None
        if before and before.first + before.count == column and _alike(before, new):
            found[-1] = replace(before, count=before.count + 1)
        else:
            found.append(new)
    return found


def _alike(one: Segment, two: Segment) -> bool:
    return (one.request, one.sequences, one.is_lost) == (two.request, two.sequences, two.is_lost)


def _but_rate(summary: Summary) -> tuple[str, ...]:
    return (summary.policy, summary.cluster, summary.model, summary.workload, summary.profile)
