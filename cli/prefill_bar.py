"""Progress of the prefill on stderr, while the terminal waits for an answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from sps2.cli import render

if TYPE_CHECKING:
    from sps2.common.api import ChatChunk, CompletionChunk


def watched(settings: dict[str, Any]) -> dict[str, Any]:
    """Request parameters with progress enabled, if stderr can show it."""
    if not render.err.is_terminal:
        return settings
    return {**settings, "sps2": {**settings.get("sps2", {}), "progress": True}}


class Reading:
    """The progress bar, from `shown` until the first piece of the answer comes."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("reading", total=None, note="")

    def take(self, chunk: "CompletionChunk | ChatChunk") -> None:
        """Show the progress in a chunk; the first chunk of the answer ends the bar."""
        if not chunk.sps2:
            if chunk.choices:
                self._bar.stop()
            return
        progress = chunk.sps2.progress
        cached = f", {progress.cached:,} cached" if progress.cached else ""
        eta = "" if progress.eta_ms is None else f", {progress.eta_ms / 1000:.0f} s left"
        self._bar.update(
            self._task,
            total=progress.total,
            completed=progress.processed,
            note=f"{progress.processed:,} of {progress.total:,} tokens{cached}{eta}",
        )


class _Share(ProgressColumn):
    """The percentage; nothing until the total is known."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.percentage:3.0f}%")


@contextmanager
def shown() -> Iterator[Reading]:
    """Show that the prompt is being read; shows nothing if stderr is not a terminal."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(24),
        _Share(),
        TextColumn("[dim]{task.fields[note]}"),
        console=render.err,
        transient=True,
        disable=not render.err.is_terminal,
    )
    with bar:
        yield Reading(bar)
