"""The rows of a drawn trace: spans as a tree, with their details in words."""

from collections.abc import Iterator
from typing import NamedTuple

from sps2.cli.top.format import count, latency, percent, short
from sps2.common.messages import Trace, TraceSpan

FINE = ("layer ", "embed", "tokens ")
"""Prefixes of spans that have no row, but are drawn into their parent's."""


class Row(NamedTuple):
    """A row of the tree. `parts` are the spans below `span` that have no row."""

    depth: int
    span: TraceSpan
    parts: tuple[TraceSpan, ...]


def rows(trace: Trace) -> list[Row]:
    """All rows: each span after its parent, in order of time."""
    by_parent: dict[str, list[TraceSpan]] = {}
    for each in trace.spans[1:]:
        by_parent.setdefault(each.parent, []).append(each)

    def below(span: TraceSpan) -> Iterator[TraceSpan]:
        for part in by_parent.get(span.id, ()):
            yield part
            yield from below(part)

    def walk(span: TraceSpan, depth: int) -> Iterator[Row]:
        fine = [part for part in by_parent.get(span.id, ()) if part.name.startswith(FINE)]
        drawn = [each for part in fine for each in (part, *below(part))]
        yield Row(depth, span, tuple(drawn))
        coarse = [part for part in by_parent.get(span.id, ()) if part not in fine]
        for part in sorted(coarse, key=lambda each: each.start_s):
            yield from walk(part, depth + 1)

    return list(walk(trace.spans[0], 0))


def note(row: Row) -> str:
    """The details of a span, in a few words."""
    span, detail = row.span, row.span.detail
    words = []
    if "method" in detail:
        words.append(
            f"{detail['attention']} by {detail['method']}, SP {_whole(detail, 'sp_degree')}"
        )
        if cached := _whole(detail, "cached_tokens"):
            words.append(f"{cached} cached")
        if epoch := _whole(detail, "epoch"):
            words.append(f"plan {int(epoch) + 1}")
    if "tokens" in detail:
        words.append(f"{_whole(detail, 'tokens')} tokens")
    moved = detail.get("sent_bytes", detail.get("bytes"))
    if moved:
        words.append(f"{short(float(moved))} bytes")
    words += _layers(row) + _steps(row)
    if span.busy_s is not None:
        words.append(f"worked {latency(span.busy_s)}")
    if "error" in detail:
        words.append(str(detail["error"]))
    return ", ".join(words)


def _layers(row: Row) -> list[str]:
    details = [part.detail for part in row.parts if "exchange_s" in part.detail]
    moving = sum(float(each["exchange_s"]) for each in details)
    hidden = sum(float(each["hidden_s"]) for each in details)
    return [f"{percent(hidden / moving)} of {latency(moving)} hidden"] if moving else []


def _steps(row: Row) -> list[str]:
    details = [part.detail for part in row.parts if "steps" in part.detail]
    steps = sum(float(each["steps"]) for each in details)
    if not steps:
        return []
    took_s = sum(float(each["steps"]) * float(each["mean_ms"]) for each in details) / 1000
    slowest_s = max(float(each["slowest_ms"]) for each in details) / 1000
    return [f"{int(steps)} steps of {latency(took_s / steps)}, slowest {latency(slowest_s)}"]


def _whole(detail: dict[str, str | float], name: str) -> str:
    number = int(detail.get(name, 0))
    return count(number) if number else ""
