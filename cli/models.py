"""`spsctl models` and `spsctl rm`: the models that were pulled."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from sps2.cli import completion, render, runs
from sps2.common import models as here
from sps2.common.errors import Invalid, ServiceError
from sps2.common.model.config import read
from sps2.common.models.file_lock import alone


def models() -> None:
    """List the models that are on this machine."""
    found = here.pulled()
    if not found:
        render.out.print("no model is here; `spsctl pull smollm2-135m` gets a small one")
        return
    table = render.table("MODEL", ">SIZE", ">CONTEXT", "FOLDER")
    for ref, folder in found.items():
        table.add_row(ref, render.size(_bytes(folder)), _context(folder), str(folder))
    render.show(table)


def rm(
    ref: Annotated[
        str,
        typer.Argument(
            help="A model, as `spsctl models` lists it.",
            metavar="MODEL",
            autocompletion=completion.pulled,
        ),
    ],
) -> None:
    """Remove a pulled model, with its quantised weights, from this machine."""
    folder = here.pulled().get(ref)
    if folder is None:
        there = ", ".join(here.pulled()) or "none"
        raise Invalid(f"there is no pulled model {ref!r} here; there are: {there}")
    for cluster in runs.running():
        if _served(cluster) == folder.resolve():
            raise Invalid(
                f"cluster {cluster.name!r} serves {ref}: `spsctl down --name {cluster.name}` first"
            )
    size = _bytes(folder)
    with alone(folder):
        shutil.rmtree(folder)
    render.out.print(f"Removed {ref} ({render.size(size)}).", markup=False)


def _served(cluster: runs.RunFolder) -> Path | None:
    try:
        return here.locate(cluster.cluster().model).resolve()
    except ServiceError:
        return None


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _context(folder: Path) -> str:
    try:
        return f"{read(folder).max_context:,}"
    except Invalid:
        return "unreadable"
