"""`spsctl logs`: the logs of a cluster's services, ordered by time."""

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from sps2.cli import completion, render, runs
from sps2.cli.runs import RunFolder
from sps2.cli.target import NameOption
from sps2.common.errors import Invalid

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ")
POLL_S = 0.2


def logs(
    service: Annotated[
        str | None,
        typer.Argument(
            help="A service, such as gateway, decode-0 or supervisor; all if absent.",
            autocompletion=completion.services,
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on printing lines as they are written.")
    ] = False,
    lines: Annotated[
        int,
        typer.Option(
            "--lines", "-n", min=0, help="How many of the last lines of each log to print."
        ),
    ] = 50,
    name: NameOption = None,
) -> None:
    """Show what the services logged, also after the cluster was stopped."""
    folder = _folder(name)
    if name is None and len(runs.known()) > 1:
        state = "which is up" if folder.is_up() else "the last one that was up"
        render.note(f"cluster {folder.name}, {state} (--name chooses another)", "dim")
    services = sorted(path.stem for path in folder.logs.glob("*.log"))
    if service is not None and service not in services:
        raise typer.BadParameter(f"no log of {service!r}; there are {', '.join(services)}")
    shown = [service] if service is not None else services
    sizes = {each: folder.log(each).stat().st_size for each in shown}
    found = merged([folder.tail(each, lines) for each in shown])
    for line in found:
        print(line)
    if not found and lines:
        nothing = (
            f"{service} has logged nothing" if service else "none of its services has logged a line"
        )
        render.note(f"cluster {folder.name}: {nothing}")
    if follow:
        _follow(folder, sizes)


def merged(logs: list[list[str]]) -> list[str]:
    """Merge lines of several logs by time; lines without a time stay with the line before."""
    entries: list[tuple[str, list[str]]] = []
    for log in logs:
        stamp = ""
        for line in log:
            match = STAMP.match(line)
            if match or not entries or not stamp:
                stamp = match[0] if match else stamp
                entries.append((stamp, [line]))
            else:
                entries[-1][1].append(line)
    entries.sort(key=lambda entry: entry[0])
    return [line for _, block in entries for line in block]


def _folder(name: str | None) -> RunFolder:
    if name is not None:
        return runs.named(name)
    if runs.running():
        return runs.choose(None)
    if not (folders := runs.known()):
        raise Invalid("there are no logs: no cluster was ever up here")
    return folders[0]


def _follow(folder: RunFolder, sizes: dict[str, int]) -> None:
    try:
        while True:
            for service, size in sizes.items():
                sizes[service] = _print_new(folder.log(service), size)
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        return


def _print_new(path: Path, start: int) -> int:
    """Print complete lines from byte `start` on; returns where the next line begins."""
    try:
        with path.open("rb") as file:
            if start > file.seek(0, 2):
                start = 0  # a new run began a new log
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return 0
    end = data.rfind(b"\n") + 1
    if end:
        print(data[:end].decode(errors="replace"), end="", flush=True)
    return start + end
