"""`spsctl pull`: makes a model available, with a progress bar."""

from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from sps2.cli import render
from sps2.common import pull as puller


def pull(
    ref: Annotated[
        str,
        typer.Argument(
            help="smollm2-135m, hf:ORG/NAME[@REVISION], a folder, or a .gguf file", metavar="REF"
        ),
    ],
) -> None:
    """Download or convert a model; at once if it is there. Prints its folder."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=render.err, transient=True) as bars:
        tasks: dict[str, int] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total or None)  # type: ignore[arg-type]

        folder = puller.pull(ref, show)
    print(folder)
