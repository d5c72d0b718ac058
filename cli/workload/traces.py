"""Reads trace files; the format is known by what is in them."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from sps2.cli.workload.agents import BLOCK_TOKENS, read_agents
from sps2.cli.workload.arrivals import Arrivals
from sps2.cli.workload.mooncake import read_mooncake
from sps2.cli.workload.recordings import read_head, read_recording
from sps2.cli.workload.requests import Turn, Workload
from sps2.cli.workload.rows import first_line
from sps2.cli.workload.scheduler_recordings import read_scheduler_recording
from sps2.cli.workload.shaping import Shape
from sps2.cli.workload.tables import has_times, read_table
from sps2.cli.workload.timing import Timing, started
from sps2.common.errors import Invalid

FORMATS = (
    "Azure's CSV, Mooncake's JSON lines, Sarathi's CSV, agent conversations, recordings of "
    "`spsctl scheduler record`, and JSON lines of one request each"
)


class _Source(NamedTuple):
    name: str
    turns: Iterator[Turn]
    block_tokens: int
    is_timed: bool


def read_trace(path: Path, shape: Shape, timing: Timing) -> Workload:
    """The requests of a trace, by time.

    Rows need not be sorted: they are sorted by time, as logs of several machines are not always in
    order. Of a file with its own times, `shape.limit` keeps the first rows, so that a huge file
    need not be read to its end.

    Raises:
        Invalid: the format is unknown, a row is broken (the message has its number), or no request
            is left.
        OSError: the file cannot be read.
    """
    if _kind(path) == "agents":
        sessions = filter(None, map(shape.session, read_agents(path)))
        arrivals = timing.arrivals or Arrivals(timing.rate or 1.0)
        turns = started(sessions, arrivals, timing.seed, shape)
        return checked(Workload(path.name, turns, shape.block(BLOCK_TOKENS, True)), str(path))
    source = _opened(path)
    found = list(
        _some(_fit(source, shape), None if shape.span_s or shape.sessions else shape.limit)
    )
    used = any(turn.blocks for turn in found)
    block = shape.block(source.block_tokens, used)
    timed = timing.timed(found, shape, source.is_timed)
    return checked(Workload(source.name, timed, block), str(path))


def checked(workload: Workload, source: str) -> Workload:
    """The workload. Raises Invalid if it has no requests."""
    if not workload.turns:
        raise Invalid(
            f"{source}: no request is left; none is there, or each is too long or too late"
        )
    return workload


def _kind(path: Path) -> str:
    first = first_line(path).lstrip()
    if not first:
        raise Invalid(f"{path} is empty, or its first row is")
    if not first.startswith("{"):
        return "table"
    marks = {"hash_ids": "mooncake", "input_length": "mooncake", "rows": "agents"}
    marks |= {"workload": "recording", "at_s": "recording", "schema": "scheduler"}
    for mark, kind in marks.items():
        if f'"{mark}"' in first:
            return kind
    raise Invalid(f"{path}, row 1: JSON of no known trace; known are {FORMATS}")


def _opened(path: Path) -> _Source:
    kind = _kind(path)
    if kind == "table":
        return _Source(path.name, read_table(path), 512, has_times(path))
    if kind == "mooncake":
        return _Source(path.name, read_mooncake(path), 512, True)
    if kind == "scheduler":
        turns, page_tokens = read_scheduler_recording(path)
        return _Source(path.name, iter(turns), page_tokens, True)
    head = read_head(path)
    if head is None:
        return _Source(path.name, read_recording(path), 512, True)
    return _Source(head.workload, read_recording(path), head.block_tokens, True)


def _fit(source: _Source, shape: Shape) -> Iterator[Turn]:
    """The requests after scaling that are short enough; a session ends with one that is not."""
    ended: set[str] = set()
    for turn in source.turns:
        sized = shape.sized(turn, shape.block(source.block_tokens, bool(turn.blocks)))
        if turn.think_s is not None and turn.session in ended:
            continue
        if sized is None:
            if turn.session:
                ended.add(turn.session)
            continue
        yield sized


def _some(turns: Iterable[Turn], limit: int | None) -> Iterable[Turn]:
    return turns if limit is None else islice(turns, limit)
