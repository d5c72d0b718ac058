"""How the commands show things to a person: consoles, units and the tables that several share."""

from io import StringIO

from rich.console import Console, RenderableType
from rich.table import Table

UNBOUNDED = 1000
"""Columns where nothing limits them."""

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say_error(message: str) -> None:
    """One red line on stderr."""
    note(message, "red")


def note(message: str, style: str | None = None) -> None:
    """One line on stderr; no path in it is broken, however long it is."""
    err.print(message, style=style, markup=False, soft_wrap=True)


def size(count: float) -> str:
    """Bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("the last unit returns")


def quantised(how: str) -> str:
    """What follows a model's name."""
    return "" if how == "none" else f" in {how}"


def counted(count: int, what: str) -> str:
    """So many of something, such as 1 shard or 2 shards."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def table(*columns: str) -> Table:
    """An empty table. A column whose name starts with `>` is flush right; one that starts with `~`
    has prose, which may take several lines."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column.lstrip(">~"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=not column.startswith("~"),
        )
    return made


def show(table: RenderableType) -> None:
    """Print a table, say; into a pipe or a file as wide as it has to be, without blanks at the
    ends of lines."""
    if out.is_terminal:
        out.print(table)
        return
    wide = Console(file=StringIO(), highlight=False, width=UNBOUNDED)
    with wide.capture() as captured:
        wide.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip(), file=out.file)


def width() -> int:
    """Columns that there are for a table."""
    return out.width if out.is_terminal else UNBOUNDED


def state(name: str) -> str:
    """A state in its colour."""
    colour = {"ready": "green", "busy": "green", "waiting": "yellow", "lost": "red"}.get(name)
    return f"[{colour}]{name}[/{colour}]" if colour else name
