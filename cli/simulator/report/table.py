"""Runs as tables for a terminal."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from sps2.cli import render
from sps2.cli.simulator.comparison import Comparison
from sps2.cli.simulator.intervals import Figure
from sps2.cli.simulator.report.words import (
    SHOWN,
    Mark,
    Unit,
    interval,
    labels,
    marks,
    number,
    title_with_unit,
)
from sps2.cli.simulator.statistics import METRICS, Groups, Spread, Summary, figure

STYLES: dict[Mark, str] = {"best": "bold green", "near": "green", "": ""}
SIGNS: dict[Mark, str] = {"best": "*", "near": "~", "": ""}
STATES = {"stable": "green", "backlogged": "yellow", "overloaded": "red", "failing": "red"}
SPREADS = (*METRICS, "itl_s")
NAME_WIDTH = 30
CELL_WIDTH = 28
LEGEND = (
    "* best; ~ within the best's interval. In brackets: 95 % intervals, of the sample of requests "
    "and of the profile's error."
)


def tables_of(summaries: Sequence[Summary], width: int) -> Iterator[RenderableType]:
    """One run in full, or several side by side."""
    if len(summaries) == 1:
        yield from one(summaries[0])
    elif summaries:
        yield from several(summaries, width)
    else:
        yield Text("no runs")


def one(summary: Summary) -> Iterator[RenderableType]:
    """All figures of a run."""
    yield Text(
        f"{summary.policy} on {summary.cluster}, {summary.model}, {summary.workload} at "
        f"{summary.rate:g} requests/s; times by {summary.profile}, ± {100 * summary.margin:.3g} %"
    )
    table = render.table("", ">mean", ">p50", ">p90", ">p99", ">requests")
    for title, groups, unit in _groups(summary):
        for name in ("all", "short", "long"):
            spread: Spread = getattr(groups, name)
            if spread.mean.is_known:
                table.add_row(Text(f"{title}, {name}"), *_cells(spread, unit))
    if summary.itl_s.mean.is_known:
        table.add_row(Text("time between two tokens"), *_cells(summary.itl_s, "s"))
    yield table
    rest = render.table("", ">", "")
    for named in SHOWN:
        found = figure(summary, named.name)
        is_spread = named.name.split(".")[0] in SPREADS
        if is_spread or not found.is_known:
            continue
        rest.add_row(
            Text(title_with_unit(named)),
            number(found.value, named.unit),
            Text(interval(found, named.unit), style="grey50"),
        )
    for kind, sent in summary.sent_bytes.items():
        if kind != "all":
            rest.add_row(Text(f"bytes sent, {kind}"), number(sent.value, "bytes"), "")
    for cause, waited in summary.waits_s.items():
        rest.add_row(Text(f"wait: {cause}"), number(waited.value, "s"), _limits(waited, "s"))
    yield rest
    yield Text(_counts(summary))
    yield _verdict(summary)


def several(summaries: Sequence[Summary], width: int) -> Iterator[RenderableType]:
    """Figures of runs side by side; below one another where they don't fit. The best of each rate
    is marked."""
    names = labels(summaries)
    shown = [named for named in SHOWN if any(figure(s, named.name).is_known for s in summaries)]
    marked = {named.name: _marks_by_rate(summaries, named.name, named.better) for named in shown}
    columns = max(1, (width - NAME_WIDTH) // CELL_WIDTH)
    for first in range(0, len(summaries), columns):
        part = range(first, min(first + columns, len(summaries)))
        table = render.table("")
        for place in part:
            table.add_column(Text(names[place]), justify="right", no_wrap=True)
        for named in shown:
            cells = [
                _cell(figure(summaries[place], named.name), named.unit, marked[named.name][place])
                for place in part
            ]
            table.add_row(Text(title_with_unit(named)), *cells)
        states = [summaries[place].verdict.state for place in part]
        table.add_row("verdict", *(Text(state, style=STATES[state]) for state in states))
        failed = [summaries[place].failed + summaries[place].unfinished for place in part]
        if any(failed):
            table.add_row("failed or unfinished", *map(str, failed))
        yield table
    yield Text(LEGEND, style="grey50")


def comparison_of(compared: Comparison) -> Iterator[RenderableType]:
    """A diff of two runs."""
    units = {named.name: named.unit for named in SHOWN}
    table = render.table("")
    for title in (compared.first, compared.second, "change"):
        table.add_column(Text(title), justify="right", no_wrap=True)
    table.add_column("")
    for each in compared.differences:
        if not each.first.is_known or not each.second.is_known:
            continue
        unit = units.get(each.name, "count")
        sign = "+" if each.change.value > 0 else "-" if each.change.value < 0 else ""
        table.add_row(
            Text(each.name),
            number(each.first.value, unit),
            number(each.second.value, unit),
            f"{sign}{number(abs(each.change.value), unit)}",
            Text("" if each.is_distinct else "cannot be told apart", style="grey50"),
        )
    yield table
    for shift in compared.shifts:
        yield Text(f"{shift.request}: {shift.in_words}")


def _groups(summary: Summary) -> list[tuple[str, Groups, Unit]]:
    return [
        ("TTFT", summary.ttft_s, "s"),
        ("TBT", summary.tbt_s, "s"),
        ("E2E", summary.e2e_s, "s"),
        ("slowdown", summary.slowdown, "times"),
    ]


def _cells(spread: Spread, unit: Unit) -> list[Text | str]:
    figures = (spread.mean, spread.p50, spread.p90, spread.p99)
    return [*(_cell(each, unit) for each in figures), f"{spread.mean.count:,}"]


def _cell(found: Figure, unit: Unit, mark: Mark = "") -> Text:
    text = Text(number(found.value, unit), style=STYLES[mark])
    text.append(f"{SIGNS[mark]:1}" if mark else "")
    limits = interval(found, unit)
    return text.append(f" [{limits}]", "not bold grey50") if limits else text


def _limits(found: Figure, unit: Unit) -> Text:
    return Text(interval(found, unit), style="grey50")


def _counts(summary: Summary) -> str:
    parts = [
        render.counted(summary.requests, "request"),
        f"{summary.completed:,} completed",
        f"{summary.failed:,} failed",
        f"{summary.unfinished:,} unfinished",
        f"prompts over {summary.long_tokens:,} tokens are long",
        f"at most {summary.most_waiting:,} waited",
        f"{summary.preemptions:,} preemptions",
        f"{summary.replanned:,} planned anew",
    ]
    if summary.broken_rules:
        parts.append(f"{summary.broken_rules:,} broken rules")
    parts += [f"{count:,} x {error}" for error, count in summary.errors.items()]
    return "; ".join(parts)


def _verdict(summary: Summary) -> Text:
    state = summary.verdict.state
    return Text.assemble((state, STATES[state]), f": {summary.verdict.reason}")


def _marks_by_rate(summaries: Sequence[Summary], name: str, better: int) -> list[Mark]:
    """Among the runs of the same workload at the same rate."""
    found: list[Mark] = [""] * len(summaries)
    keys = [(each.workload, each.rate) for each in summaries]
    for key in dict.fromkeys(keys):
        places = [place for place, each in enumerate(keys) if each == key]
        group = marks([figure(summaries[place], name) for place in places], better)
        for place, mark in zip(places, group, strict=True):
            found[place] = mark
    return found
