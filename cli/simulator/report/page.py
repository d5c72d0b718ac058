"""Runs as one HTML page that needs nothing else: no network, no other file."""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from sps2.cli.simulator.outcomes import Run
from sps2.cli.simulator.report.charts import Axis, Line, bar_chart, legend, line_chart
from sps2.cli.simulator.report.records import MOST_RECORDS, records_of
from sps2.cli.simulator.report.series import (
    at_one_rate,
    by_rate,
    cumulative,
    stepped,
    timeline,
    values_of,
)
from sps2.cli.simulator.report.words import (
    SHOWN,
    SWEPT,
    interval,
    labels,
    marks,
    number,
    title_with_unit,
)
from sps2.cli.simulator.statistics import Summary, figure
from sps2.cli.simulator.verdict import waiting_over_time

COLUMNS = 900
"""Of a timeline, in time."""
QUEUE_COLUMNS = 300
TEMPLATE = Path(__file__).with_name("page.html")
QUIET = '<p class="quiet">no requests</p>'


def page(
    runs: Sequence[Run],
    summaries: Sequence[Summary],
    *,
    title: str = "Simulated runs",
    rate: float | None = None,
    most_records: int = MOST_RECORDS,
) -> str:
    """The page. All runs are in its table and its rates; distributions, timelines and requests are
    of those at `rate` (None: as `at_one_rate` chooses)."""
    names = labels(runs)
    places = at_one_rate(summaries, rate)
    chosen = [runs[place] for place in places]
    chosen_names = [names[place] for place in places]
    long_tokens = max((summaries[place].long_tokens for place in places), default=0)
    has_rates = len({each.rate for each in summaries}) > 1
    records = records_of(chosen, chosen_names, long_tokens, most_records)
    parts = {
        "title": escape(title),
        "about": _about(summaries),
        "verdicts": _verdicts(summaries, names),
        "table": _table(summaries, names),
        "at": escape(f" at {chosen[0].rate:g} requests/s") if has_rates and chosen else "",
        "legend": legend(chosen_names),
        "latencies": _latencies(chosen, chosen_names, long_tokens),
        "rates": _rates(summaries) if has_rates else "",
        "bytes": _bytes([summaries[place] for place in places], chosen_names),
        "queue": _queue(chosen, chosen_names),
        "timelines": _json(_timelines(chosen, chosen_names)),
        "records": _json(records),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], TEMPLATE.read_text(encoding="utf-8"))


def _json(value: Any) -> str:
    """JSON for a script element: nothing in it can end the element, or start a comment."""
    text = msgspec.json.encode(value).decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _about(summaries: Sequence[Summary]) -> str:
    """What all runs have in common."""
    parts = []
    for field, name in (
        ("cluster", "cluster"),
        ("model", "model"),
        ("workload", "workload"),
        ("profile", "profile"),
    ):
        values = dict.fromkeys(getattr(each, field) for each in summaries)
        if values:
            text = ", ".join(escape(value) for value in values)
            parts.append(f"<div><dt>{name}</dt><dd>{text}</dd></div>")
    margins = dict.fromkeys(f"± {100 * each.margin:.3g} %" for each in summaries)
    if margins:
        parts.append(f"<div><dt>error of times</dt><dd>{', '.join(margins)}</dd></div>")
    counts = dict.fromkeys(f"{each.requests:,}" for each in summaries)
    parts.append(f"<div><dt>requests</dt><dd>{', '.join(counts) or '0'}</dd></div>")
    lengths = dict.fromkeys(f"over {each.long_tokens:,} tokens" for each in summaries)
    if lengths:
        parts.append(f"<div><dt>long prompts</dt><dd>{', '.join(lengths)}</dd></div>")
    return f"<dl>{''.join(parts)}</dl>"


def _verdicts(summaries: Sequence[Summary], names: Sequence[str]) -> str:
    rows = []
    for each, name in zip(summaries, names, strict=True):
        failed = each.failed + each.unfinished
        more = f"; {failed:,} failed or unfinished" if failed else ""
        more += f"; {each.broken_rules:,} broken rules" if each.broken_rules else ""
        rows.append(
            f'<li><b>{escape(name)}</b> <span class="state {each.verdict.state}">'
            f"{each.verdict.state}</span> {escape(each.verdict.reason + more)}</li>"
        )
    return f'<ul class="verdicts">{"".join(rows)}</ul>' if rows else QUIET


def _table(summaries: Sequence[Summary], names: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for named in SHOWN:
        figures = [figure(each, named.name) for each in summaries]
        if not any(each.is_known for each in figures):
            continue
        found = [""] * len(figures)
        for rate in dict.fromkeys(each.rate for each in summaries):
            of = [place for place, each in enumerate(summaries) if each.rate == rate]
            for place, mark in zip(of, marks([figures[p] for p in of], named.better), strict=True):
                found[place] = mark
        cells = "".join(
            f'<td class="{mark}">{number(each.value, named.unit)}'
            f"<small>{interval(each, named.unit)}</small></td>"
            for each, mark in zip(figures, found, strict=True)
        )
        rows.append(f"<tr><th>{escape(title_with_unit(named))}</th>{cells}</tr>")
    return (
        f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        if rows
        else QUIET
    )


def _latencies(runs: Sequence[Run], names: Sequence[str], long_tokens: int) -> str:
    share = Axis("share of requests", low=0.0, high=1.0)
    panels: tuple[tuple[str, str, dict[str, Any]], ...] = (
        (f"TTFT of prompts up to {long_tokens:,} tokens, s", "ttft_s", {"up_to": long_tokens}),
        ("TTFT of longer prompts, s", "ttft_s", {"above": long_tokens}),
        ("slowdown: TTFT / TTFT on an idle cluster", "slowdown", {}),
        ("TBT of a request, s", "tbt_s", {}),
        ("E2E, s", "e2e_s", {}),
    )
    charts = []
    for title, metric, limits in panels:
        lines = [
            Line(name, cumulative(values_of(run, metric, **limits)), place)
            for place, (run, name) in enumerate(zip(runs, names, strict=True))
        ]
        if any(line.points for line in lines):
            charts.append(line_chart(lines, Axis(title, is_log=True), share, stepped=True))
    return "".join(f"<figure>{each}</figure>" for each in charts) or QUIET


def _rates(summaries: Sequence[Summary]) -> str:
    charts: list[str] = []
    shown: list[str] = []
    for named in SWEPT:
        lines = [
            Line(name, [(x, f.value) for x, f in at], place, [(f.low, f.high) for _, f in at])
            for place, (name, at) in enumerate(by_rate(summaries, named.name).items())
        ]
        shown = shown or [line.name for line in lines]
        title = f"{named.title}, s" if named.unit == "s" else title_with_unit(named)
        is_share = named.unit == "share"
        y = Axis(title, named.unit in ("s", "times"), 0.0, 1.0 if is_share else None)
        charts.append(line_chart(lines, Axis("requests per second", low=0.0), y))
    figures = "".join(f"<figure>{each}</figure>" for each in charts)
    return (
        f'<section><h2>Rates</h2>{legend(shown)}<div class="charts">{figures}</div>'
        '<p class="quiet">Bars are 95 % intervals; one that reaches the top has no upper limit.'
        "</p></section>"
    )


def _bytes(summaries: Sequence[Summary], names: Sequence[str]) -> str:
    kinds = dict.fromkeys(kind for each in summaries for kind in each.sent_bytes)
    kinds.pop("all", None)
    widths = {
        kind: [
            each.sent_bytes[kind].value / 2**30 if kind in each.sent_bytes else 0.0
            for each in summaries
        ]
        for kind in kinds
    }
    chart = bar_chart(names, widths, "GiB sent between shards")
    return f"{legend(list(kinds))}<figure>{chart}</figure>" if kinds else QUIET


def _queue(runs: Sequence[Run], names: Sequence[str]) -> str:
    lines = []
    for place, (run, name) in enumerate(zip(runs, names, strict=True)):
        points = [(time, float(count)) for time, count in waiting_over_time(run)]
        lines.append(Line(name, stepped(points, run.stopped_s, QUEUE_COLUMNS), place))
    return line_chart(lines, Axis("seconds"), Axis("requests that wait", low=0.0), stepped=True)


def _timelines(runs: Sequence[Run], names: Sequence[str]) -> dict[str, Any]:
    """For the page's script: cells are [first column, columns, place of the request's name or -1,
    sequences, is lost, ...]."""
    places: dict[str, int] = {}
    made = []
    for run, name in zip(runs, names, strict=True):
        rows = []
        for shard, segments in timeline(run, COLUMNS).items():
            cells: list[float] = []
            for each in segments:
                place = places.setdefault(each.request, len(places)) if each.request else -1
                sequences = int(each.sequences) if each.sequences >= 10 else each.sequences
                cells += [each.first, each.count, place, sequences, int(each.is_lost)]
            rows.append({"shard": shard, "cells": cells})
        stop = max([run.stopped_s, *(each.stop_s for each in run.activities)], default=0.0)
        made.append({"name": name, "stop": round(stop, 3), "rows": rows})
    return {"columns": COLUMNS, "names": list(places), "runs": made}
