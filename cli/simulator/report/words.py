"""Names of figures for people, with their units, and numbers as text."""

from collections.abc import Sequence
from math import isinf, isnan
from typing import Literal, NamedTuple

from sps2.cli.render import size
from sps2.cli.simulator.intervals import Figure
from sps2.cli.simulator.outcomes import Run
from sps2.cli.simulator.statistics import Summary
from sps2.cli.top.format import latency, short

Unit = Literal["s", "times", "tokens/s", "requests/s", "share", "bytes", "count"]
Mark = Literal["best", "near", ""]


class Named(NamedTuple):
    """A figure of a summary: its name there, that for people, its unit.

    better: 1 if more is better, -1 if less is, 0 if neither.
    """

    name: str
    title: str
    unit: Unit
    better: int


SHOWN = (
    Named("ttft_s.all.mean", "TTFT, mean", "s", -1),
    Named("ttft_s.all.p50", "TTFT, p50", "s", -1),
    Named("ttft_s.all.p99", "TTFT, p99", "s", -1),
    Named("ttft_s.short.mean", "TTFT of short prompts, mean", "s", -1),
    Named("ttft_s.short.p99", "TTFT of short prompts, p99", "s", -1),
    Named("ttft_s.long.mean", "TTFT of long prompts, mean", "s", -1),
    Named("ttft_s.long.p99", "TTFT of long prompts, p99", "s", -1),
    Named("slowdown.all.mean", "slowdown, mean", "times", -1),
    Named("slowdown.all.p99", "slowdown, p99", "times", -1),
    Named("tbt_s.all.mean", "TBT of a request, mean", "s", -1),
    Named("tbt_s.all.p99", "TBT of a request, p99", "s", -1),
    Named("itl_s.p99", "time between two tokens, p99", "s", -1),
    Named("e2e_s.all.mean", "E2E, mean", "s", -1),
    Named("e2e_s.all.p99", "E2E, p99", "s", -1),
    Named("prefill_tokens_per_s", "prefill throughput", "tokens/s", 1),
    Named("decode_tokens_per_s", "decode throughput", "tokens/s", 1),
    Named("requests_per_s", "completed requests", "requests/s", 1),
    Named("goodput_share", "requests within SLOs", "share", 1),
    Named("goodput_per_s", "goodput", "requests/s", 1),
    Named("starved", "starved requests", "share", -1),
    Named("waiting", "queue, mean", "count", -1),
    Named("cached_share", "prompt tokens in the cache", "share", 1),
    Named("degree", "prefill shards of a request", "count", 0),
    Named("sent_bytes_per_request.all", "bytes sent per request", "bytes", -1),
)
"""What tables show of every run."""

SWEPT = (
    Named("ttft_s.all.mean", "TTFT, mean", "s", -1),
    Named("ttft_s.short.p99", "TTFT of short prompts, p99", "s", -1),
    Named("slowdown.all.p99", "slowdown, p99", "times", -1),
    Named("tbt_s.all.p99", "TBT of a request, p99", "s", -1),
    Named("goodput_share", "requests within SLOs", "share", 1),
    Named("prefill_tokens_per_s", "prefill throughput", "tokens/s", 1),
)
"""What is shown against the rate."""


def number(value: float, unit: Unit) -> str:
    """A value in few characters, with its unit where it is not a rate."""
    if isnan(value):
        return "-"
    if isinf(value):
        return "∞"
    if unit == "s":
        return latency(value)
    if unit == "share":
        return f"{100 * value:.3g}%" if value < 0.9995 else "100%"
    if unit == "bytes":
        return size(value)
    if unit == "times":
        return f"{value:.2f}x" if value < 9.995 else f"{short(value)}x"
    return f"{value:.2f}" if value < 9.995 else short(value)


def interval(figure: Figure, unit: Unit) -> str:
    """The limits of a figure; empty if there are none."""
    if not figure.is_known or figure.low == figure.high:
        return ""
    return f"{number(figure.low, unit)} to {number(figure.high, unit)}"


def title_with_unit(named: Named) -> str:
    return f"{named.title}, {named.unit}" if named.unit.endswith("/s") else named.title


def marks(figures: Sequence[Figure], better: int) -> list[Mark]:
    """Which figure is the best, and which are within its interval; all alike are not marked."""
    known = [each.value for each in figures if each.is_known]
    if not better or len(known) < 2 or min(known) == max(known):
        return ["" for _ in figures]
    best_value = max(known) if better > 0 else min(known)
    best = next(each for each in figures if each.value == best_value)
    found: list[Mark] = []
    for each in figures:
        if each.value == best_value:
            found.append("best")
        elif better < 0 and isinf(best.high):  # too few requests to bound it from above
            found.append("near" if each.low <= best.value else "")
        else:
            found.append("near" if best.low <= each.value <= best.high else "")
    return found


def labels(runs: Sequence[Run | Summary]) -> list[str]:
    """A name for each run: its policy, and whatever else the runs differ in."""
    parts = [[run.policy] for run in runs]
    for field, template in (
        ("cluster", "{}"),
        ("model", "{}"),
        ("workload", "{}"),
        ("profile", "{}"),
        ("rate", "{:g}/s"),
        ("seed", "seed {}"),
    ):
        if field == "seed" and len({tuple(part) for part in parts}) == len(parts):
            break
        values = [getattr(run, field) for run in runs]
        if len(set(values)) > 1:
            for part, value in zip(parts, values, strict=True):
                part.append(template.format(value))
    if len({run.policy for run in runs}) == 1 and len(parts[0]) > 1:
        parts = [part[1:] for part in parts]
    names = [", ".join(part) for part in parts]
    return [
        f"{name} ({names[:place].count(name) + 1})" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]
