"""`spsctl down`: stops a cluster, whoever started it."""

from typing import Annotated

import typer

from sps2.cli import launch, render, runs


def down(
    name: Annotated[
        str | None, typer.Option(help="of the cluster; not needed if only one is up")
    ] = None,
) -> None:
    """Stop a cluster and every process of it. Stopping what is not up is no error."""
    if name is None and not runs.running():
        render.out.print("no cluster is up")
        return
    folder = runs.RunFolder(name) if name else runs.choose(None)
    with render.err.status(f"stopping {folder.name}"):
        was_up = launch.stop(folder)
    render.out.print(f"{folder.name} is stopped" if was_up else f"{folder.name} is not up")
