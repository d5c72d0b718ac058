"""How the commands show things to a person: consoles, units and the tables that several share."""

from rich.console import Console
from rich.table import Table

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say_error(message: str) -> None:
    """One red line on stderr."""
    err.print(message, style="red", markup=False, soft_wrap=True)


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


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{seconds:.1f} s"


def table(*columns: str) -> Table:
    """An empty table; a column whose name starts with `>` is flush right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.removeprefix(">"), justify="right" if right else "left")
    return made


def state(name: str) -> str:
    """A state in its colour."""
    colour = {"ready": "green", "busy": "green", "waiting": "yellow", "lost": "red"}.get(name)
    return f"[{colour}]{name}[/{colour}]" if colour else name
