"""`spsctl down`: stops a cluster, whoever started it."""

from sps2.cli import render, runs, supervisor_process
from sps2.cli.target import NameOption


def down(name: NameOption = None) -> None:
    """Stop a cluster with all its processes. It is no error if it is stopped already."""
    if name is None and not runs.running():
        render.out.print("no cluster is up")
        return
    folder = runs.choose(None) if name is None else runs.named(name)
    with render.err.status(f"stopping {folder.name}"):
        was_up = supervisor_process.stop(folder)
    render.out.print(f"{folder.name} is stopped" if was_up else f"{folder.name} is not up")
