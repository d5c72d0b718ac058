"""Converts a trace to JSON for Perfetto and Chrome's tracing."""

from collections.abc import Sequence
from typing import Any

from sps2.common.messages import Trace, TraceSpan

TRACKS = {"compute": "computes", "await": "awaits", "send": "sends"}
"""Titles of separate tracks, by the names of their spans."""


def events(trace: Trace) -> dict[str, Any]:
    """The trace with a process per service and a track per kind of span; times in microseconds.

    Format: the "Trace Event Format" of Chrome, complete ("X") and metadata ("M") events.
    """
    services = list(dict.fromkeys(each.service for each in trace.spans))
    listed: list[dict[str, Any]] = []
    for process, service in enumerate(services, 1):
        listed.append(_named("process_name", process, 0, service))
        own = [each for each in trace.spans if each.service == service]
        thread = 0
        for title in ("", *TRACKS):
            track = [each for each in own if (each.name if each.name in TRACKS else "") == title]
            for number, lane in enumerate(lanes(track)):
                thread += 1
                name = TRACKS.get(title, "stages") + (f" {number + 1}" if number else "")
                listed.append(_named("thread_name", process, thread, name))
                listed += [_event(each, process, thread) for each in lane]
    return {
        "traceEvents": listed,
        "displayTimeUnit": "ms",
        "otherData": {"request": trace.request, "trace_id": trace.trace_id},
    }


def lanes(spans: Sequence[TraceSpan]) -> list[list[TraceSpan]]:
    """Split spans into as few lanes as possible, in each of which they do not overlap partly."""
    found: list[list[TraceSpan]] = []
    open_: list[list[TraceSpan]] = []
    for each in sorted(spans, key=lambda each: (each.start_s, -each.stop_s)):
        place = next((at for at, lane in enumerate(open_) if _fits(lane, each)), len(found))
        if place == len(found):
            found.append([])
            open_.append([])
        found[place].append(each)
        open_[place].append(each)
    return found


def _fits(under_way: list[TraceSpan], each: TraceSpan) -> bool:
    """Remove spans that have ended; whether `each` fits into the last open one, if any."""
    while under_way and under_way[-1].stop_s <= each.start_s:
        under_way.pop()
    return not under_way or under_way[-1].stop_s >= each.stop_s


def _event(each: TraceSpan, process: int, thread: int) -> dict[str, Any]:
    more = {} if each.busy_s is None else {"busy_s": each.busy_s}
    return {
        "ph": "X",
        "name": each.name,
        "cat": "sps2",
        "ts": round(1e6 * each.start_s, 3),
        "dur": round(1e6 * (each.stop_s - each.start_s), 3),
        "pid": process,
        "tid": thread,
        "args": each.detail | more,
    }


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}
