"""`spsctl pull`: makes a model available, with a progress bar."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sps2.cli import render
from sps2.common import config as configuration
from sps2.common import models
from sps2.common.errors import Invalid
from sps2.common.models import pull as puller


def pull(
    ref: Annotated[
        str | None,
        typer.Argument(
            help="smollm2-135m, hf:ORG/NAME[:QUANTISATION][@REVISION], a folder, or a .gguf file.",
            metavar="REF",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Pull the model that this configuration names.", dir_okay=False),
    ] = None,
) -> None:
    """Download or convert a model, if it is not here yet. Prints its folder."""
    if (ref is None) == (config is None):
        raise typer.BadParameter("give a model, or --config FILE")
    print(fetched(configuration.load(config).model if ref is None else ref))


def obtained(ref: str) -> Path:
    """The folder of a model, which is pulled first if necessary and possible."""
    try:
        return models.locate(ref)
    except Invalid:
        if not models.can_be_pulled(ref):
            raise
    render.note(f"{ref} is not here yet: pulling it")
    return fetched(ref)


def fetched(ref: str) -> Path:
    """Pull a model, with a progress bar on stderr; returns its folder."""
    with shown() as progress:
        return puller.pull(ref, progress)


@contextmanager
def shown() -> Iterator[models.Progress]:
    """A progress bar on stderr for each stage of what is reported within the block."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # without a terminal it would leave an empty line
    silent = not render.err.is_interactive
    with Progress(*columns, console=render.err, transient=True, disable=silent) as bars:
        tasks: dict[str, int] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total or None)  # type: ignore[arg-type]

        yield show
