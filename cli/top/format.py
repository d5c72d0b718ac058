"""Numbers in few characters, bars, and rows of columns."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

UNKNOWN = "-"
QUIET = "grey50"
"""The style of secondary text."""
FULL, HALF, EMPTY = "━", "╸", "─"

Cell = str | Text | tuple[str, str]
"""A text, or one with its style."""


class Column(NamedTuple):
    """A column of a table; `right` aligns to the right, for numbers."""

    title: str
    width: int
    right: bool = False


def short(value: float | None) -> str:
    """A number in at most five characters: 0, 7.3, 42, 1.2k, 850k, 3.4M."""
    if value is None:
        return UNKNOWN
    for unit in ("", "k", "M", "G", "T"):
        if value < 9.95 and (unit or value % 1):
            return f"{value:.1f}{unit}"
        if value < 999.5 or unit == "T":
            return f"{value:.0f}{unit}"
        value /= 1000
    raise AssertionError("the last unit returns")


def latency(seconds: float | None) -> str:
    """Seconds in at most six characters."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.0995:
        return f"{1000 * seconds:.1f}ms"
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f}ms"
    return f"{seconds:.2f}s" if seconds < 9.995 else elapsed(seconds)


def elapsed(seconds: float) -> str:
    """A duration in at most six characters."""
    if seconds < 99.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 100 else f"{hours // 24}d"


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{round(100 * share)}%"


def count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def bar(width: int, share: float, style: str, behind: float = 0.0, behind_style: str = "") -> Text:
    """A bar of `width` cells: `share` of it in `style`, then `behind` in `behind_style`."""
    cells = round(2 * width * min(max(share, 0.0), 1.0))
    if share > 0 and not cells:
        cells = 1
    line = Text(FULL * (cells // 2) + HALF * (cells % 2), style=style)
    more = min(width - len(line), round(width * behind))
    line.append(FULL * more, behind_style)
    return line.append(EMPTY * (width - len(line)), "grey30")


def head(columns: Sequence[Column]) -> Text:
    """The row of titles."""
    return line(columns, [(column.title, f"bold {QUIET}") for column in columns])


def line(columns: Sequence[Column], cells: Sequence[Cell]) -> Text:
    """A row of cells; text that is too long for its column is cut off."""
    row = Text(" ", no_wrap=True)
    for column, cell in zip(columns, cells, strict=True):
        if isinstance(cell, Text):
            text = cell.copy()
            text.truncate(column.width, overflow="ellipsis")
        else:
            content, style = (cell, "") if isinstance(cell, str) else cell
            if len(content) > column.width:
                content = content[: column.width - 1] + "…"
            text = Text(content, style=style)
        room = column.width - text.cell_len
        if column.right:
            row.append(" " * room)
        row.append_text(text)
        if not column.right:
            row.append(" " * room)
        row.append(" ")
    return row


def width_of(columns: Sequence[Column]) -> int:
    """The width of a row with these columns, margins included."""
    return 1 + sum(column.width + 1 for column in columns)
