"""The requests on the screen, with their progress."""

from collections.abc import Sequence

from rich.text import Text

from sps2.cli.top.controls import STAGES
from sps2.cli.top.format import (
    QUIET,
    UNKNOWN,
    Cell,
    Column,
    bar,
    count,
    elapsed,
    head,
    line,
    percent,
    short,
    width_of,
)
from sps2.cli.top.snapshot import Request

COLOURS = {
    "queued": "yellow",
    "reserving": "yellow",
    "prefill": "cyan",
    "transfer": "magenta",
    "decode": "green",
    "ended": QUIET,
}
BAR = 20
LABEL = 14


def requests(shown: Sequence[Request], chosen: str, width: int) -> list[Text]:
    """A row per request."""
    columns = [
        Column("REQUEST", 14),
        Column("AGE", 6, True),
        Column("PROMPT", 7, True),
        Column("STAGE", BAR),
        Column("", LABEL),
        Column("SP", 2, True),
    ]
    if width < 110:
        columns.append(Column("OWNER", 9))
    else:
        more = [Column("CACHED", 7, True), Column("METHOD", 8), Column("SENT", 5, True)]
        rest = width - width_of([*columns, *more])
        size = min(40, max(12, rest // 2))
        columns[3] = Column("STAGE", min(48, BAR + max(0, rest - size - 1)))
        columns += [*more, Column("KV ON (OWNER LAST)", size)]
    rows = []
    for each in shown:
        row = line(columns, _cells(each, columns[3].width)[: len(columns)])
        if each.request == chosen:
            row.stylize("reverse", 0, 1 + columns[0].width)
        rows.append(row)
    return [head(columns), *(rows or [Text(" no requests", style=QUIET)])]


def _cells(request: Request, size: int) -> list[Cell]:
    name, choice = request.request[:12], request.request[12:].lstrip("0")
    style = QUIET if request.stage == "ended" else ""
    cells: list[Cell] = [
        (f"{name}.{choice}" if choice else name, style or "bold"),
        (elapsed(request.age_s), style),
        (count(request.prompt_tokens), style),
        course(request, size),
        label(request),
        (str(len(request.group)) if request.group else UNKNOWN, style),
    ]
    if size <= BAR:
        return [*cells, (request.owner or UNKNOWN, style)]
    return [
        *cells,
        (count(request.cached_tokens), style),
        (request.method or UNKNOWN, style),
        (short(request.exchange_bytes), style),
        (" ".join(request.holders) or UNKNOWN, style),
    ]


def course(request: Request, width: int) -> Text:
    """A bar of four parts: queue, prefill, transfer, decode."""
    short_ = 2
    long = (width - 2 * short_ - 3) // 2
    sizes = (short_, width - 2 * short_ - 3 - long, short_, long)
    parts = (("queued", "reserving"), ("prefill",), ("transfer",), ("decode",))
    place = STAGES.index(request.stage)
    line_ = Text()
    for index, (names, size) in enumerate(zip(parts, sizes, strict=True)):
        here = request.stage in names
        done = place > STAGES.index(names[-1]) and not (request.error and request.stage == "ended")
        colour = QUIET if request.stage == "ended" else COLOURS[names[-1]]
        part = progress(request) if here else 1.0 if done else 0.0
        line_.append_text(bar(size, 0.5 if part is None else part, colour))
        line_.append("" if index == len(sizes) - 1 else " ")
    return line_


def progress(request: Request) -> float | None:
    """The progress of its stage, 0 to 1; None if unknown."""
    if request.stage == "prefill" and request.prompt_tokens:
        cached = request.cached_tokens or 0
        computed = (request.processed or cached) - cached
        return computed / max(1, request.prompt_tokens - cached)
    if request.stage == "decode" and request.max_tokens:
        return (request.tokens or 0) / request.max_tokens
    return None


def label(request: Request) -> Cell:
    """The stage in words, with its progress."""
    colour = COLOURS[request.stage]
    if request.stage == "prefill":
        word = "paused" if request.waits_for else "prefill"
        return f"{word} {percent(progress(request))}", colour
    if request.stage == "decode":
        # a chat without a limit may fill the context: such a limit is not informative
        limit = request.max_tokens if (request.max_tokens or 1 << 30) < 10_000 else None
        return f"decode {count(request.tokens)}" + (f"/{limit}" if limit else ""), colour
    if request.stage == "ended":
        return (request.error, "red") if request.error else ("done", colour)
    return request.stage, colour
