"""Output of the commands: consoles, units, and tables."""

from io import StringIO

from rich.console import Console, RenderableType
from rich.table import Table

COLOURS = {
    "ready": "green",
    "busy": "green",
    "waiting": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "lost": "red",
}
UNBOUNDED = 1000
"""Columns of output that is not on a terminal."""

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say_error(message: str) -> None:
    """Print one red line on stderr."""
    note(message, "red")


def note(message: str, style: str | None = None) -> None:
    """Print one line on stderr, without wrapping."""
    err.print(message, style=style, markup=False, soft_wrap=True)


def size(count: float) -> str:
    """Bytes in binary units, for example "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("the last unit returns")


def quantised(how: str) -> str:
    """The suffix of a model's name for its quantisation."""
    return "" if how == "none" else f" in {how}"


def counted(count: int, what: str) -> str:
    """A count with its noun, for example "1 shard" or "2 shards"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def table(*columns: str) -> Table:
    """An empty table. A column whose name starts with `>` is right-aligned; one that starts with
    `~` has prose, which may wrap."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column.lstrip(">~"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=not column.startswith("~"),
        )
    return made


def show(table: RenderableType) -> None:
    """Print a table or the like; into a pipe or a file as wide as necessary, without trailing
    blanks."""
    if out.is_terminal:
        out.print(table)
        return
    wide = Console(file=StringIO(), highlight=False, width=UNBOUNDED)
    with wide.capture() as captured:
        wide.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip(), file=out.file)


def width() -> int:
    """Columns that are available for a table."""
    return out.width if out.is_terminal else UNBOUNDED


def state(name: str) -> str:
    """A state with markup for its colour."""
    colour = COLOURS.get(name)
    return f"[{colour}]{name}[/{colour}]" if colour else name
