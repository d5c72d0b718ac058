"""The parts of the screen about the cluster, its shards and its links, as lines of text."""

from collections.abc import Sequence

from rich.text import Text

from sps2.cli.top.format import (
    QUIET,
    UNKNOWN,
    Cell,
    Column,
    bar,
    count,
    head,
    latency,
    line,
    percent,
    short,
    width_of,
)
from sps2.cli.top.snapshot import Link, Picture, Service, Shard, Totals

STATES = {
    "ready": "green",
    "busy": "bold green",
    "waiting": "yellow",
    "starting": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "lost": "bold red",
}
ROLES = {"prefill": "cyan", "decode": "green", "mixed": "blue"}
BAR = 5
"""The shortest bar, in cells."""


def title(totals: Totals, right: str, width: int) -> list[Text]:
    """The line with the cluster's name and state, and one with what it waits for."""
    line_ = Text(" ", no_wrap=True)
    line_.append("spsctl top", "bold")
    for part in (totals.name, totals.model):
        if part:
            line_.append("  ").append(part)
    line_.append("  ").append(totals.state, STATES[totals.state])
    line_.append(" " * max(1, width - line_.cell_len - len(right) - 1)).append(right, QUIET)
    lines = [line_]
    what = f" waits for {totals.waiting_for}" if totals.waiting_for else ""
    if what := what or (f" missing: {totals.missing}" if totals.missing else ""):
        lines.append(Text(what, style="yellow", no_wrap=True, overflow="ellipsis"))
    return lines


def totals(totals: Totals, width: int) -> list[Text]:
    """The cluster's figures in two lines: titles and values."""
    cells = [
        ("REQ/s", short(totals.requests_s)),
        ("IN tok/s", short(totals.tokens_in_s)),
        ("OUT tok/s", short(totals.tokens_out_s)),
        ("TTFT p50", latency(totals.ttft_p50_s)),
        ("p99", latency(totals.ttft_p99_s)),
        ("TBT p50", latency(totals.tbt_p50_s)),
        ("p99", latency(totals.tbt_p99_s)),
        ("QUEUE", count(totals.queued)),
        ("RUN", count(totals.running)),
        ("HIDDEN", percent(totals.hidden)),
    ]
    widths = [max(len(name), 6 if "p" in name else 0) for name, _ in cells]
    spare = max(0, min(width, 130) - sum(widths) - len(cells) - 1) // len(cells)
    columns = [Column(name, size + spare) for (name, _), size in zip(cells, widths, strict=True)]
    queued = "yellow" if totals.queued else "bold"
    styles = ["bold"] * 7 + [queued, "bold", "bold"]
    values = [(value, style) for (_, value), style in zip(cells, styles, strict=True)]
    return [head(columns), line(columns, [_quietly(each) for each in values])]


def shards(shown: Sequence[Shard], width: int) -> list[Text]:
    """A row per shard, and below them why shards are left out."""
    names = max([8, *(len(each.id) for each in shown)])
    fixed = [Column("SHARD", min(names, 14)), Column("ROLE", 7), Column("STATE", 8)]
    counts = [
        Column("PRE", 3, True),
        Column("OWN", 3, True),
        Column("HELD", 4, True),
        Column("IN B/s", 6, True),
        Column("OUT B/s", 7, True),
    ]
    if width >= 90:
        counts.append(Column("HIDDEN", 6, True))
    spare = width - width_of([*fixed, *counts]) - 2 * 6
    size = min(max(BAR, spare // 2), 24)
    bars = [Column("BUSY", size + 5), Column("KV", size + 5)]
    columns = [*fixed, *bars, *counts]
    rows = [line(columns, _shard(each, size)[: len(columns)]) for each in shown]
    slow = [f" {each.id} is left out: {each.left_out}" for each in shown if each.left_out]
    notes = [Text(each, style="yellow", no_wrap=True, overflow="ellipsis") for each in slow]
    for note in notes:
        note.truncate(width, overflow="ellipsis")
    return [head(columns), *rows, *notes]


def _shard(shard: Shard, size: int) -> list[Cell]:
    state = STATES.get(shard.state, "")
    colour = ROLES.get(shard.role, "")
    gone = shard.state == "lost"
    computes, keeps = shard.role != "decode", shard.role != "prefill"
    cells: list[Cell] = [
        (shard.id, "red" if gone else "bold"),
        (shard.role, colour),
        (shard.state, state),
        _gauge(size, shard.busy, colour),
        _kv(size, shard) if keeps else "",
        count(shard.prefilling) if computes else "",
        count(shard.owned) if keeps else "",
        count(shard.held) if keeps else "",
        short(shard.in_bytes_s),
        short(shard.out_bytes_s),
        percent(shard.hidden) if computes else "",
    ]
    return [_quietly(each) for each in cells]


def _gauge(size: int, share: float | None, style: str) -> Cell:
    if share is None:
        return UNKNOWN
    return bar(size, share, style).append(f"{percent(share):>5}")


def _kv(size: int, shard: Shard) -> Cell:
    """A bar of the pages in use, and behind it those that are cached and can be evicted."""
    if not shard.pages or shard.pages_free is None:
        return UNKNOWN
    idle = (shard.pages_idle or 0) / shard.pages
    used = 1 - shard.pages_free / shard.pages - idle
    return bar(size, used, "magenta", idle, "grey50").append(f"{percent(used):>5}")


def services(shown: Sequence[Service], width: int) -> list[Text]:
    """A row per process."""
    columns = [
        Column("SERVICE", 14),
        Column("STATE", 8),
        Column("PID", 8, True),
        Column("MEMORY", 6, True),
        Column("ADDRESS", 26),
    ]
    columns.append(Column("", max(1, width - width_of(columns) - 2)))
    rows = [
        line(
            columns,
            [
                (each.service, "bold"),
                (each.state, STATES.get(each.state, "")),
                str(each.pid or UNKNOWN),
                short(each.rss_bytes or None),
                (each.address or UNKNOWN, QUIET),
                (f"waits for {each.waiting_for}" if each.waiting_for else "", "yellow"),
            ],
        )
        for each in shown
    ]
    return [head(columns), *rows]


def links(picture: Picture, width: int) -> list[Text]:
    """A matrix of bytes per second: a row for each sending shard, a column for each shard."""
    known = [each.id for each in picture.shards]
    ends = {each.source for each in picture.links} | {each.target for each in picture.links}
    names = [name for name in known if name in ends] + sorted(ends - {*known})
    if not names:
        return [head([Column("LINKS", 40)]), Text(" nothing sent yet", style=QUIET)]
    hidden = {each.id: each.hidden for each in picture.shards if each.role != "decode"}
    first = min(14, max(11, *map(len, names)))
    size = min(10, max(4, (width - first - 10) // len(names) - 1))
    fitting = max(1, (width - first - 10) // (size + 1))
    columns = [Column("B/s FROM→TO", first), *(Column(_brief(n, size), size, True) for n in names)]
    columns = [*columns[: 1 + fitting], Column("HIDDEN", 6, True)]
    sent = {(each.source, each.target): each for each in picture.links}
    rows = []
    for source in names:
        if not any(each.source == source for each in picture.links):
            continue
        cells = [_flow(sent.get((source, target)), source == target) for target in names[:fitting]]
        last = percent(hidden[source]) if source in hidden else ""
        rows.append(line(columns, [(source, "bold"), *cells, _quietly(last)]))
    return [head(columns), *rows]


def busiest(picture: Picture, width: int, rows: int) -> list[Text]:
    """The links that carry most, if there is no room for the matrix."""
    moving = sorted(picture.links, key=lambda each: -(each.bytes_s or 0))
    moving = [each for each in moving if each.bytes_s]
    lines = [head([Column("BUSIEST LINKS, B/s", 40)])]
    if not moving:
        return [*lines, Text(" nothing is sent now", style=QUIET)]
    across = max(1, (width - 1) // 38)
    for start in range(0, min(len(moving), across * (rows - 1)), across):
        row = Text(" ", no_wrap=True)
        for each in moving[start : start + across]:
            ends = f"{each.source} → {each.target}"
            row.append(f"{ends:<28}").append(f"{short(each.bytes_s):>6}", "cyan").append("    ")
        lines.append(row)
    return lines


def _flow(link: Link | None, own: bool) -> Cell:
    if link is None:
        return "" if own else ("·", "grey30")
    if not link.bytes_s:
        return (UNKNOWN if link.bytes_s is None else "0", QUIET)
    return short(link.bytes_s), "cyan"


def _brief(shard: str, size: int) -> str:
    """A shard's name, shortened if it does not fit: d12 for decode-12."""
    role, _, index = shard.partition("-")
    return shard if len(shard) <= size else role[:1] + index


def _quietly(cell: Cell) -> Cell:
    """The cell, in the secondary style if its value is unknown."""
    content = cell if isinstance(cell, str) else cell[0] if isinstance(cell, tuple) else ""
    return (UNKNOWN, QUIET) if content == UNKNOWN else cell
