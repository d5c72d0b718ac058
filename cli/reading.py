"""The wait for an answer in the terminal: how far the prompt is, on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from sps2.cli import render

if TYPE_CHECKING:
    from sps2.common.api import ChatChunk, CompletionChunk


def watched(settings: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a request that also ask for its progress, where that can be shown."""
    if not render.err.is_terminal:
        return settings
    return {**settings, "sps2": {**settings.get("sps2", {}), "progress": True}}


class Reading:
    """Shown from `shown` on until the first piece of the answer comes."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("reading", total=None, note="")

    def take(self, chunk: "CompletionChunk | ChatChunk") -> None:
        """Show what a chunk tells of the prefill; the first that is of the answer ends it."""
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
    """Nothing until there is a total."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.percentage:3.0f}%")


@contextmanager
def shown() -> Iterator[Reading]:
    """Shows that the prompt is being read; nothing where stderr is no terminal."""
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
