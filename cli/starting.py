"""What `spsctl up` and `spsctl join` show while services start, and how they are interrupted."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from rich.live import Live
from rich.table import Table

from sps2.cli import render
from sps2.cli.launch import Progress

T = TypeVar("T")


def interrupt(*_: object) -> None:
    """A signal handler: as Ctrl-C."""
    raise KeyboardInterrupt


def shown(
    wait: Callable[[Callable[[Progress], None]], Coroutine[Any, Any, T]], progress: Progress
) -> T:
    """Run `wait(on_change)`, and show the progress: on a terminal as it changes, else at last."""
    if not render.out.is_terminal:
        result = asyncio.run(wait(lambda _: None))
        render.show(table(progress))
        return result
    with Live(console=render.out, refresh_per_second=8) as live:
        return asyncio.run(wait(lambda changed: live.update(table(changed))))


def table(progress: Progress) -> Table:
    """The services that start, with their states."""
    hosts = any(started.host for started in progress.services.values())
    last = "HOST" if hosts else ">PID"
    notes = [] if progress.ready_after_s is not None else ["NOTE"]
    table = render.table("SERVICE", "STATE", ">UP AFTER", ">MEMORY", last, *notes)
    for name, started in progress.services.items():
        after_s = started.up_after_s
        table.add_row(
            name,
            render.state(started.state),
            "" if after_s is None else f"{after_s:.1f} s",
            render.size(started.rss_bytes) if started.rss_bytes else "",
            started.host if hosts else str(started.pid or ""),
            *([started.note] if notes else []),
        )
    if progress.ready_after_s is not None:
        total = sum(started.rss_bytes for started in progress.services.values())
        ready = f"{progress.ready_after_s:.1f} s"
        table.add_section()
        table.add_row("cluster", render.state("ready"), ready, render.size(total), style="bold")
    elif progress.waiting_for:
        table.caption = f"waits for {progress.waiting_for}"
    return table
