"""`spsctl trace`: shows where the time of a request went, through all services."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from sps2.cli import render
from sps2.cli.target import ConfigOption, NameOption, reachable
from sps2.cli.top.format import count, elapsed, latency
from sps2.cli.trace.drawing import draw
from sps2.cli.trace.perfetto import events
from sps2.common.bus.gateways import Gateways
from sps2.common.config import Cluster
from sps2.common.messages import ListTraces, Request, ShowTrace, Traces

Reply = TypeVar("Reply")

DEADLINE_S = 15.0
NARROW = 80
COLUMNS = ("REQUEST", ">AGO", ">TOOK", ">TTFT", ">PROMPT", ">ANSWER", "ASKED AS", "END")
OPTIONAL = ("ASKED AS", ">PROMPT", ">ANSWER", ">TTFT")
"""Columns that are left out, in this order, if there is no room."""
LISTED = 20
END = 12
"""Minimum width of the column END."""


def trace(
    request: Annotated[
        str | None,
        typer.Argument(
            help="An answer's id, or the x-request-id of its HTTP answer. Without it the last "
            "requests are listed, the newest at the end."
        ),
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option(
            "--lines",
            "-n",
            min=1,
            help="How many of the last requests to list.",
            show_default=f"{LISTED}; all with --json",
        ),
    ] = None,
    perfetto: Annotated[
        Path | None,
        typer.Option(
            "--perfetto", help="Write a file for https://ui.perfetto.dev.", dir_okay=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object, for scripts.")] = False,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Show where the time of a request went: which service did what for it, and when."""
    if request is None:
        if perfetto is not None:
            raise typer.BadParameter("--perfetto needs a REQUEST")
        found = asyncio.run(_ask(reachable(name, config), ListTraces()))
        if as_json:
            print(msgspec.json.encode(Traces(found.traces[:lines])).decode())
        else:
            _list(found, lines or LISTED)
        return
    if lines is not None:
        raise typer.BadParameter("-n is for the list, without a REQUEST")
    traced = asyncio.run(_ask(reachable(name, config), ShowTrace(request)))
    if perfetto is not None:
        perfetto.write_bytes(msgspec.json.encode(events(traced)))
    if as_json:
        print(msgspec.json.encode(traced).decode())
    elif perfetto is not None:
        print(f"{perfetto}: {len(traced.spans)} spans; open it at https://ui.perfetto.dev")
    else:
        for line in draw(traced, max(NARROW, render.out.width)):
            render.out.print(line, soft_wrap=True)


async def _ask(cluster: Cluster, request: Request[Reply]) -> Reply:
    peer = Gateways(cluster.gateway_addresses, cluster.bus)
    try:
        return await peer.call(request, DEADLINE_S)
    finally:
        await peer.close()


def _list(found: Traces, most: int) -> None:
    """Print the last requests in order of time, so that the latest is next to the prompt."""
    if not found.traces:
        render.out.print("no request was answered yet, or `tracing.kept` is 0")
        return
    rows = [
        (
            each.request,
            elapsed(each.age_s),
            latency(each.took_s),
            latency(each.ttft_s),
            count(each.prompt_tokens),
            count(each.tokens),
            each.asked_as,
            each.error or ("runs" if each.is_running else "ok"),
        )
        for each in reversed(found.traces[:most])
    ]
    render.show(_fitting(rows, render.width()))
    if len(found.traces) > most:
        render.note(f"{len(found.traces) - most} older: spsctl trace -n {len(found.traces)}", "dim")


def _fitting(rows: Sequence[tuple[str, ...]], width: int) -> Table:
    """The table within `width`: ids stay whole, the column END is shortened."""
    lengths = {
        name: max(len(name.lstrip(">")), *(len(row[place]) for row in rows)) + 2
        for place, name in enumerate(COLUMNS)
    }
    lengths["END"] = min(lengths["END"], END + 2)
    for name in OPTIONAL:
        if sum(lengths.values()) - 2 > width:
            del lengths[name]
    table = render.table(*lengths)
    room = width - sum(lengths.values()) + lengths["END"]
    table.columns[list(lengths).index("END")].max_width = room
    for row in rows:  # an error may look like markup
        table.add_row(*(Text(row[COLUMNS.index(name)]) for name in lengths))
    return table
