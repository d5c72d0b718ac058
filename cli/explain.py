"""`spsctl explain`: why a request ran where and when it did."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from sps2.cli import render
from sps2.cli.recordings import recorded
from sps2.cli.target import ConfigOption, NameOption, reachable
from sps2.common.api.answer_ids import name_in
from sps2.common.config import Cluster
from sps2.services.scheduler.explanation import Explanation, Option
from sps2.services.scheduler.explanation import explain as explained
from sps2.services.scheduler.replay import Recording

SHOWN = 6
"""Options that a decision shows, the chosen one included."""


def explain(
    request: Annotated[str, typer.Argument(help="An answer's id; `spsctl trace` lists them.")],
    every: Annotated[
        bool, typer.Option("--all", help=f"Show all options, not only {SHOWN}.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Read a recording of `spsctl scheduler record`.", dir_okay=False
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a list of objects, for scripts.")
    ] = False,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Show the numbers behind each decision about a request, and what other plans would have cost.

    The scheduler remembers at least its last 4,096 events. They are replayed here.
    """
    recording = (
        Recording.read(file)
        if file is not None
        else asyncio.run(_recording(reachable(name, config)))
    )
    found = explained(recording, name_in(request))
    if as_json:
        print(msgspec.json.encode([_as_dict(each) for each in found]).decode())
        return
    for number, each in enumerate(found):
        if number:
            print()
        _show(each, None if every else SHOWN)


async def _recording(cluster: Cluster) -> Recording:
    lines = [line async for line in recorded(cluster, follow=False)]
    return Recording(lines, "the scheduler")


def _as_dict(explanation: Explanation) -> dict[str, object]:
    steps = [
        {
            "at_s": step.at_s,
            "what": step.what,
            "options": [option._asdict() for option in step.options],
        }
        for step in explanation.steps
    ]
    return {"request": explanation.request, "steps": steps}


def _show(explanation: Explanation, most: int | None) -> None:
    render.out.print(f"request {explanation.request}", style="bold", markup=False)
    for step in explanation.steps:
        render.out.print(f"{step.at_s:9.3f} s  {step.what}", markup=False, soft_wrap=True)
        if step.options:
            _show_options(step.options, most)


def _show_options(options: tuple[Option, ...], most: int | None) -> None:
    table = render.table("", ">SP", "ATTENTION", "METHOD", ">CACHED", ">FIRST TOKEN", ">MOVED", "")
    for option in options[:most]:
        table.add_row(
            " " * 10,
            str(option.sp_degree),
            option.attention,
            option.method,
            f"{option.cached_tokens:,}" if option.cached_tokens else "",
            f"{option.seconds:.3f} s",
            render.size(option.nbytes),
            "chosen" if option.chosen else "",
        )
    render.show(table)
    if most is not None and len(options) > most:
        print(f"{'':11} {len(options) - most} more with --all")
