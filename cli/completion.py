"""Shell completion: names of clusters, services and models."""

import typer

from sps2.cli import runs
from sps2.common import models


def clusters(incomplete: str) -> list[str]:
    """Clusters that are or were up."""
    return [folder.name for folder in runs.known() if folder.name.startswith(incomplete)]


def services(context: typer.Context, incomplete: str) -> list[str]:
    """Services with a log, of the cluster of `--name`, or else of the latest."""
    name = context.params.get("name")
    folders = [runs.RunFolder(name)] if name else runs.running() or runs.known()
    names = [log.stem for folder in folders[:1] for log in folder.logs.glob("*.log")]
    return sorted(each for each in names if each.startswith(incomplete))


def pulled(incomplete: str) -> list[str]:
    """Models that were pulled."""
    return [ref for ref in models.pulled() if ref.startswith(incomplete)]
