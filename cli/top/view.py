"""The screen: renders a picture by the user's choices as lines of text; no I/O."""

from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from sps2.cli.top import panels, stages
from sps2.cli.top.controls import Controls
from sps2.cli.top.detail import detail
from sps2.cli.top.format import QUIET
from sps2.cli.top.snapshot import Picture

WIDE = 150
"""Terminal width from which on links are shown beside shards."""
FEWEST = 4
"""Minimum lines for requests, which other parts leave free."""
KEYS = (
    ("q", "quit"),
    ("↑↓⏎", "detail"),
    ("s", "sort"),
    ("o", "order"),
    ("/", "filter"),
    ("p", "pause"),
    ("v", "view"),
    ("?", "help"),
)
HELP = """\
 q        quit                     ↑ ↓ j k   choose a request
 s        next order of requests   enter     its detail, and back
 o        next order of shards     v         all, shards, links or requests
 /        filter by name, stage,   p space   pause and go on
          role or owner            escape    back; no filter

 BUSY     share of time that the shard's compute thread was on a core
 KV       pages in use by requests; grey after it: cached, free if needed
 PRE      requests that it prefills; OWN generates for; HELD has KV of
 paused   of a prefill: its shards compute a more urgent one first
 HIDDEN   share of transfers between prefill shards beside arithmetic
 IN, OUT  bytes a second over the data plane; k, M, G are powers of 1000
 -        not known yet
"""


def view(picture: Picture, controls: Controls, width: int, height: int | None = None) -> Group:
    """The screen.

    Args:
        height: in lines; None: as many as needed, without the line about keys.
    """
    return Group(*lines(picture, controls, width, height))


def lines(
    picture: Picture, controls: Controls, width: int, height: int | None = None
) -> list[Text]:
    """Exactly `height` lines of at most `width` characters."""
    top = [
        *panels.title(picture.cluster, _note(controls), width),
        *panels.totals(picture.cluster, width),
    ]
    if height is None:
        return [*top, *_parts(picture, controls, width, 1 << 30)]
    room = height - len(top) - 1
    if controls.help:
        body = [Text(), *(Text(each) for each in HELP.splitlines())]
    elif controls.opened:
        body = [Text(), *_opened(picture, controls, width)]
    else:
        body = _parts(picture, controls, width, room)
    shown = [*top, *body[: max(room, 0)]]
    shown += [Text() for _ in range(height - 1 - len(shown))]
    return [*shown[: height - 1], _footer(controls, width)]


def _parts(picture: Picture, controls: Controls, width: int, room: int) -> list[Text]:
    requests = stages.requests(controls.requests(picture), controls.chosen(picture), width)
    chosen = [each.request for each in controls.requests(picture)]
    place = chosen.index(controls.chosen(picture)) if chosen else 0
    if controls.panel == "requests":
        return [Text(), *_around(requests, place, room - 1)]
    wide = width >= WIDE and controls.panel == "all"
    half = width // 2 if wide else width
    shards = panels.shards(controls.shards(picture), half)
    if controls.panel == "shards":
        return [Text(), *_cut(shards, room - 1)]
    links = panels.links(picture, width - half if wide else width)
    if controls.panel == "links":
        return [Text(), *_cut(links, room - 1)]

    least = min(len(requests), FEWEST)
    if wide:
        upper = _beside(shards, links, half)
        parts = [_cut(upper, room - 2 - least)]
    else:
        left = room - 3 - least - len(shards)
        if len(links) > left:
            links = panels.busiest(picture, width, max(2, min(3, left)))
        parts = [_cut(shards, room - 3 - least - len(links)), links]
    services = panels.services(picture.services, width)
    needed = sum(len(part) + 1 for part in (*parts, services, requests))
    if picture.services and needed <= room:
        parts.append(services)
    body = [each for part in parts for each in (Text(), *part)]
    return [*body, Text(), *_around(requests, place, room - len(body) - 1)]


def _beside(left: Sequence[Text], right: Sequence[Text], width: int) -> list[Text]:
    rows = []
    for index in range(max(len(left), len(right))):
        row = left[index].copy() if index < len(left) else Text()
        row.append(" " * max(0, width - row.cell_len))
        if index < len(right):
            row.append_text(right[index])
        rows.append(row)
    return rows


def _cut(rows: list[Text], room: int) -> list[Text]:
    """The first rows; the last line says how many more there are."""
    if len(rows) <= room:
        return rows
    kept = rows[: max(1, room - 1)]
    return [*kept, Text(f" … {len(rows) - len(kept)} more: v", style=QUIET)]


def _around(rows: list[Text], place: int, room: int) -> list[Text]:
    """The header, and as many rows around the chosen one as there is room for."""
    if len(rows) <= room:
        return rows
    shown = max(1, room - 2)
    first = max(0, min(place - shown // 2, len(rows) - 1 - shown))
    rest = len(rows) - 1 - shown
    return [
        rows[0],
        *rows[1 + first : 1 + first + shown],
        Text(f" … {rest} more", style=QUIET),
    ]


def _opened(picture: Picture, controls: Controls, width: int) -> list[Text]:
    for each in picture.requests:
        if each.request == controls.selected:
            return detail(each, width)
    return [Text(f" request {controls.selected} has ended", style=QUIET)]


def _note(controls: Controls) -> str:
    parts = [
        "PAUSED" if controls.paused else "",
        "" if controls.sort == "age" else f"requests by {controls.sort}",
        "" if controls.order == "name" else f"shards by {controls.order}",
        f"filter {controls.filter}" if controls.filter and not controls.typing else "",
    ]
    return "  ".join(filter(None, parts))


def _footer(controls: Controls, width: int) -> Text:
    if controls.typing:
        typed = Text(" filter: ", style="bold", no_wrap=True).append(controls.filter)
        return typed.append("█").append("   enter keeps it, escape drops it", QUIET)
    row = Text(" ", no_wrap=True)
    for key, what in KEYS:
        row.append(key, "bold").append(f" {what}  ", QUIET)
    row.truncate(width)
    return row
