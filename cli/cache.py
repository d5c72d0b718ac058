"""`spsctl cache`: what the prefix cache of a cluster has, in memory and on disk."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from sps2.cli import render
from sps2.cli.target import ConfigOption, NameOption, reachable
from sps2.common.api import EstimateRequest, parse
from sps2.common.api.pins import PinPrompt
from sps2.common.bus.gateways import Gateways
from sps2.common.config import Cluster
from sps2.common.errors import Invalid
from sps2.common.messages import DropCache, Pinned, Reply, Request, ShowCluster, UnpinAll

DEADLINE_S = 5.0
PIN_S = 60.0
"""How long the tokens of a prompt and their pages may take to be found."""
HOUR_S = 3600.0

PromptFile = Annotated[
    Path,
    typer.Argument(
        exists=True,
        dir_okay=False,
        allow_dash=True,
        metavar="FILE",
        help="The prompt: a text, or with --json the body of a request; - reads it from stdin.",
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="FILE is the body of a completion or a chat, with its messages and tools."
    ),
]


def show(name: NameOption = None, config: ConfigOption = None) -> None:
    """List the cached pages of KV of every shard, in memory and on disk.

    Hits are pages that requests shared since the shard started. Faults are page files that were
    damaged, and reads and writes that failed; no request fails by them.
    """
    cluster = reachable(name, config)
    found = asyncio.run(_ask(cluster, ShowCluster()))
    table = render.table(
        *("SHARD", ">IN MEMORY", ">HITS", ">ON DISK", ">SIZE", ">PINNED", ">HITS", ">READ"),
        *(">WRITTEN", ">FAULTS"),
    )
    for service in found.services:
        has = service.counters
        if "kv_pages_cached" not in has:
            continue
        disk = ["-"] * 7
        if "kv_disk_pages" in has:
            faults = sum(has[f"kv_disk_{each}"] for each in ("damaged", "unreadable", "unwritable"))
            disk = [
                f"{has['kv_disk_pages']:,.0f}",
                render.size(has["kv_disk_bytes"]),
                f"{has['kv_disk_pinned']:,.0f}",
                f"{has['kv_disk_hits']:,.0f}",
                render.size(has["kv_disk_read_bytes"]),
                render.size(has["kv_disk_written_bytes"]),
                f"{faults:,.0f}",
            ]
        memory = f"{has['kv_pages_cached']:,.0f}", f"{has['kv_hits']:,.0f}"
        table.add_row(service.service, *memory, *disk)
    render.show(table)
    if not cluster.kv.disk_folder:
        print("\nNo pages are kept on disk: see `spsctl up --kv-disk`.")


def drop(
    shard: Annotated[
        str, typer.Option(help="Only of this shard, for example mixed-0.", show_default="all")
    ] = "",
    unused: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="HOURS",
            help="Only pages on disk that no request used for this many hours.",
        ),
    ] = None,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Drop cached pages of KV, in memory and on disk.

    Pages that requests use now stay in memory until those end. Pinned pages stay on disk.
    """
    cluster = reachable(name, config)
    unused_s = None if unused is None else unused * HOUR_S
    dropped = asyncio.run(_ask(cluster, DropCache(shard, unused_s)))
    on_disk = "; its pages on disk are being deleted" if cluster.kv.disk_folder else ""
    if unused is not None:
        on_disk = f"; pages on disk that were unused for {unused:g} h are being deleted"
    for each, pages in dropped.pages.items():
        print(f"{each}: {render.counted(pages, 'page')} dropped from memory{on_disk}")


def pin(
    file: PromptFile,
    body: JsonOption = False,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Keep the KV of a prompt on disk, however long it is not used.

    Its cached pages are kept, from the first one up to the first that is not cached: send the
    prompt once before. Half of the room on disk (kv.disk_gib) is the most.
    """
    pinned = _pin(file, body, True, reachable(name, config))
    count = sum(pinned.pages.values())
    for shard, pages in pinned.pages.items():
        print(f"{shard}: {render.counted(pages, 'page')} pinned")
    if count < pinned.prompt_pages:
        print(
            f"These are the first {count} of the prompt's {pinned.prompt_pages} full pages: the "
            "others are not cached. Send the prompt once, and pin it again."
        )


def unpin(
    file: Annotated[
        Path | None,
        typer.Argument(
            exists=True, dir_okay=False, allow_dash=True, metavar="FILE", help="As for pin."
        ),
    ] = None,
    body: JsonOption = False,
    everything: Annotated[bool, typer.Option("--all", help="Unpin all pages.")] = False,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Let the pages of a prompt be deleted again when others need their room."""
    if everything == (file is not None):
        raise Invalid("give either FILE or --all")
    cluster = reachable(name, config)
    unpinned = (
        asyncio.run(_ask(cluster, UnpinAll())) if file is None else _pin(file, body, False, cluster)
    )
    for shard, pages in unpinned.pages.items():
        print(f"{shard}: {render.counted(pages, 'page')} no longer pinned")
    if not unpinned.pages:
        print("No page was pinned.")


def _pin(file: Path, body: bool, keep: bool, cluster: Cluster) -> Pinned:
    content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    if body:
        asked = parse(content, EstimateRequest)
    else:
        try:
            asked = EstimateRequest(prompt=content.decode())
        except UnicodeDecodeError:
            raise Invalid(f"{file} is no text in UTF-8") from None
    return asyncio.run(_ask(cluster, PinPrompt(asked, keep), PIN_S))


async def _ask(cluster: Cluster, request: Request[Reply], deadline_s: float = DEADLINE_S) -> Reply:
    peer = Gateways(cluster.gateway_addresses, cluster.bus)
    try:
        return await peer.call(request, deadline_s)
    finally:
        await peer.close()
