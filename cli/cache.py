"""`spsctl cache`: what the prefix cache of a cluster has, in memory and on disk."""

import asyncio
from typing import Annotated

import typer

from sps2.cli import render
from sps2.cli.target import ConfigOption, NameOption, reachable
from sps2.common.bus.peer import Peer
from sps2.common.config import Cluster
from sps2.common.messages import DropCache, Reply, Request, ShowCluster

DEADLINE_S = 5.0
HOUR_S = 3600.0


def show(name: NameOption = None, config: ConfigOption = None) -> None:
    """List the cached pages of KV of every shard, in memory and on disk.

    Hits are pages that requests shared since the shard started. Faults are page files that were
    damaged, and reads and writes that failed; no request fails by them.
    """
    cluster = reachable(name, config)
    found = asyncio.run(_ask(cluster, ShowCluster()))
    table = render.table(
        "SHARD", ">IN MEMORY", ">HITS", ">ON DISK", ">SIZE", ">HITS", ">READ", ">WRITTEN", ">FAULTS"
    )
    for service in found.services:
        has = service.counters
        if "kv_pages_cached" not in has:
            continue
        disk = ["-"] * 6
        if "kv_disk_pages" in has:
            faults = sum(has[f"kv_disk_{each}"] for each in ("damaged", "unreadable", "unwritable"))
            disk = [
                f"{has['kv_disk_pages']:,.0f}",
                render.size(has["kv_disk_bytes"]),
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

    Pages that requests use now stay in memory until those end.
    """
    cluster = reachable(name, config)
    unused_s = None if unused is None else unused * HOUR_S
    dropped = asyncio.run(_ask(cluster, DropCache(shard, unused_s)))
    on_disk = "; its pages on disk are being deleted" if cluster.kv.disk_folder else ""
    if unused is not None:
        on_disk = f"; pages on disk that were unused for {unused:g} h are being deleted"
    for each, pages in dropped.pages.items():
        print(f"{each}: {render.counted(pages, 'page')} dropped from memory{on_disk}")


async def _ask(cluster: Cluster, request: Request[Reply]) -> Reply:
    peer = Peer(cluster.gateway_address, cluster.bus, "gateway")
    try:
        return await peer.call(request, DEADLINE_S)
    finally:
        await peer.close()
