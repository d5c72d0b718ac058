"""Draws a trace as lines of text: a row per span, with a bar on a time axis."""

from collections.abc import Sequence
from datetime import datetime

from rich.text import Text

from sps2.cli.top.format import QUIET, Cell, Column, count, head, latency, line, percent, width_of
from sps2.cli.trace.tree import Row, note, rows
from sps2.common.messages import Trace, TraceSpan
from sps2.common.tracing import accounted

WIDE = 120
"""Terminal width from which on there are notes beside the bars."""
NOTE = 46
WHOLE, OTHER, NOTHING = ("━", "white"), ("━", "blue"), ("·", QUIET)
COMPUTE, MOVE, BOTH = ("━", "cyan"), ("┅", "magenta"), ("═", "green")
SLOW, NOW_AND_THEN = ("▪", "yellow"), ("╌", "blue")
LEGEND = (
    (COMPUTE, "computes"),
    (MOVE, "transfers"),
    (BOTH, "both"),
    (SLOW, "slow steps"),
    (NOW_AND_THEN, "now and then"),
)
SLOW_TIMES = 3.0
"""A run of steps is slow if its slowest step took this many times the median."""

Ends = tuple[float, float]


def draw(trace: Trace, width: int) -> list[Text]:
    """The trace in lines of at most `width` characters."""
    whole = trace.spans[0]
    columns = [
        Column("SERVICE", 10),
        Column("", 15),
        Column("START", 6, True),
        Column("TIME", 6, True),
    ]
    if width >= WIDE:
        columns.append(Column("", NOTE))
    size = width - width_of(columns) - 1
    columns.append(Column("", size))
    titles = head(columns[:-1]).append_text(_axis(whole, size))
    return [
        *_title(trace, whole),
        Text(),
        titles,
        *(line(columns, _cells(row, whole, size, width >= WIDE)) for row in rows(trace)),
        Text(),
        _legend(),
        *_warnings(trace),
    ]


def _title(trace: Trace, whole: TraceSpan) -> list[Text]:
    at = datetime.fromtimestamp(trace.at_s).strftime("%Y-%m-%d %H:%M:%S")
    detail = whole.detail
    first = Text(f" {trace.request}", style="bold")
    if asked_as := detail.get("asked_as"):
        first.append(f"  asked as {asked_as}", QUIET)
    first.append(f"  {at}", QUIET)
    facts = [latency(whole.stop_s - whole.start_s) + (" so far" if whole.is_open else "")]
    if "tokens" in detail:
        facts.append(f"{_count(detail, 'prompt_tokens')} + {_count(detail, 'tokens')} tokens")
    if "ttft_s" in detail:
        facts.append(f"first after {latency(float(detail['ttft_s']))}")
    if "error" in detail:
        facts.append(str(detail["error"]))
    facts.append(f"{percent(accounted(trace))} accounted for")
    return [
        first,
        Text(f" {', '.join(facts)}", style="red" if "error" in detail else ""),
        Text(f" trace {trace.trace_id}", style=QUIET),
    ]


def _cells(row: Row, whole: TraceSpan, size: int, has_note: bool) -> list[Cell]:
    span = row.span
    name = f"{'  ' * max(0, row.depth - 1)}{span.name}"
    seconds = span.stop_s - span.start_s
    cells: list[Cell] = [
        (span.service, QUIET),
        name,
        latency(max(0.0, span.start_s)),
        f"{latency(seconds)}",
    ]
    if has_note:
        cells.append((note(row), QUIET))
    return [*cells, _bar(row, whole, size)]


def _bar(row: Row, whole: TraceSpan, size: int) -> Text:
    """A bar of `size` cells, each an equal part of the whole time, by the work done in it."""
    span = row.span
    each_s = max(1e-9, whole.stop_s - whole.start_s) / size
    computing = _ends(row.parts, "compute")
    moving = _ends(row.parts, "await", "send")
    slow = _slow(row.parts)
    bar = Text()
    for cell in range(size):
        at = (whole.start_s + cell * each_s, whole.start_s + (cell + 1) * each_s)
        if not _within([(span.start_s, span.stop_s)], at) and not _begins(span, at):
            bar.append(" ")
        elif span.busy_s is not None:
            bar.append(*NOW_AND_THEN)
        elif not computing and not moving:
            bar.append(*(SLOW if _within(slow, at) else OTHER if row.depth else WHOLE))
        else:
            computes, moves = _within(computing, at) > 0, _within(moving, at) > 0
            kinds = ((NOTHING, MOVE), (COMPUTE, BOTH))
            bar.append(*kinds[computes][moves])
    return bar


def _begins(span: TraceSpan, cell: Ends) -> bool:
    """Whether the span begins in the cell, so that even the shortest span is visible."""
    return cell[0] <= span.start_s < cell[1]


def _ends(parts: Sequence[TraceSpan], *names: str) -> list[Ends]:
    return [(part.start_s, part.stop_s) for part in parts if part.name in names]


def _slow(parts: Sequence[TraceSpan]) -> list[Ends]:
    runs = [part for part in parts if "slowest_ms" in part.detail]
    if not runs:
        return []
    usual = sorted(float(part.detail["mean_ms"]) for part in runs)[len(runs) // 2]
    return [
        (part.start_s, part.stop_s)
        for part in runs
        if float(part.detail["slowest_ms"]) > SLOW_TIMES * usual
    ]


def _within(intervals: Sequence[Ends], cell: Ends) -> float:
    return sum(max(0.0, min(stop, cell[1]) - max(start, cell[0])) for start, stop in intervals)


def _axis(whole: TraceSpan, size: int) -> Text:
    axis = Text(style=QUIET)
    marks = 4 if size >= 60 else 2
    for mark in range(marks):
        at = latency((whole.stop_s - whole.start_s) * mark / marks)
        axis.append(f"{'0' if not mark else at:<{size * (mark + 1) // marks - len(axis)}}")
    return axis


def _legend() -> Text:
    legend = Text(" ")
    for (character, style), meaning in LEGEND:
        legend.append(2 * character, style).append(f" {meaning}  ", QUIET)
    return legend


def _warnings(trace: Trace) -> list[Text]:
    lines = [
        Text(f" no answer from {each}: what it did is not shown", style="yellow")
        for each in trace.missing
    ]
    for clock in trace.clocks:
        if clock.error_s:
            lines.append(
                Text(
                    f" {clock.service} has a clock of its own: its times may be off by "
                    f"{latency(clock.error_s)}",
                    style="yellow",
                )
            )
    return lines


def _count(detail: dict[str, str | float], name: str) -> str:
    return count(int(detail[name]))
