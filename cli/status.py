"""`spsctl status`: the services, shards, requests and KV of a cluster at a glance."""

import asyncio
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from sps2.cli import addresses, render, runs
from sps2.cli.runs import Child, State
from sps2.cli.target import ConfigOption, NameOption, cluster_of
from sps2.cli.top.format import elapsed
from sps2.common.bus.gateways import Gateways
from sps2.common.config import Cluster
from sps2.common.errors import ServiceError
from sps2.common.messages import ClusterStatus, ServiceStatus, ShowCluster
from sps2.services.compatibility import APART_S

DEADLINE_S = 5.0
NARROW = 100
"""Terminal width below which requests have fewer columns."""


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print one object, for scripts.")] = False,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Show what a cluster does. Exit code 1 unless it is ready.

    A cluster that accepts requests is ready; if shards are missing, they are named.
    """
    cluster = cluster_of(name, config)
    state = None if config is not None else runs.RunFolder(cluster.name).state()
    children = state.services if state else {}
    try:
        found = asyncio.run(_ask(cluster))
    except ServiceError as error:
        found = _from_supervisor(cluster, state, str(error))
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        show(cluster, found, children)
    if not found.ready:
        raise typer.Exit(1)


async def _ask(cluster: Cluster) -> ClusterStatus:
    peer = Gateways(cluster.gateway_addresses, cluster.bus)
    try:
        return await peer.call(ShowCluster(), DEADLINE_S)
    finally:
        await peer.close()


def _from_supervisor(cluster: Cluster, state: State | None, why: str) -> ClusterStatus:
    """The status as far as it is known while the gateway does not answer."""
    services = tuple(
        ServiceStatus(service, "", "starting" if child.pid else "lost", child.pid)
        for service, child in (state.services if state else {}).items()
    )
    waiting_for = f"the gateway at {cluster.gateway_place} ({why})"
    return ClusterStatus(cluster.model, "", False, waiting_for, services, (), (), (), 0)


def show(cluster: Cluster, found: ClusterStatus, children: dict[str, Child]) -> None:
    """Print a status as tables. `children` adds the supervisor's pids and restarts."""
    word = render.state("ready" if found.ready else "waiting")
    render.out.print(
        f"[bold]{cluster.name}[/]: {word}, {found.model}"
        f"{render.quantised(found.quantize)}, {_url(cluster)}",
        soft_wrap=True,
    )
    if found.missing:
        render.out.print(f"missing: {found.missing}", style="yellow", markup=False)
    if found.waiting_for:
        render.out.print(f"waits for {found.waiting_for}", style="yellow", markup=False)
    render.out.print()
    render.show(_services(found, children))
    if found.shards:
        render.out.print()
        render.show(_shards(found, cluster.kv.page_tokens))
    for shard in found.shards:
        if shard.left_out:
            said = f"{shard.id} is left out: {shard.left_out}"
            render.out.print(said, style="yellow", markup=False, soft_wrap=True)
    if rates := found.rates:
        render.out.print(
            f"predictions take {rates.gflops:.3g} GFLOP/s of the fastest shard, and links of "
            f"{rates.link_gbit:.2g} Gbit/s and {1000 * rates.link_latency_s:.2g} ms",
            style="dim",
            markup=False,
            soft_wrap=True,
        )
    if found.requests:
        render.out.print()
        render.show(_requests(found, narrow=render.width() < NARROW))
    if found.leaked_pages:
        render.out.print(f"\n[red]{found.leaked_pages} KV pages have leaked[/]")


def _url(cluster: Cluster) -> str:
    return cluster.at(addresses.of(cluster.host_of("gateway"))[0]).http_url


def _services(found: ClusterStatus, children: dict[str, Child]) -> Table:
    reported = {each.service: each for each in found.services}
    rows = []
    for name in dict.fromkeys([*reported, *children]):
        each = reported.get(name) or ServiceStatus(name, "", "starting")
        child = children.get(name, Child())
        rows.append((name, each, child, _note(each, child)))
    restarts, notes = any(row[2].exits for row in rows), any(row[3] for row in rows)
    optional = [*([">RESTARTS"] if restarts else []), *(["~NOTE"] if notes else [])]
    table = render.table("SERVICE", "STATE", ">PID", ">UP", ">MEMORY", *optional)
    for name, each, child, note in rows:
        table.add_row(
            name,
            render.state(each.state),
            str(each.pid or child.pid or ""),
            elapsed(each.up_s) if each.up_s else "",
            render.size(each.rss_bytes) if each.rss_bytes else "",
            *([str(child.exits or "")] if restarts else []),
            *([note] if notes else []),
        )
    return table


def _shards(found: ClusterStatus, page_tokens: int) -> Table:
    assigned = any(shard.duty not in (shard.role, None) for shard in found.shards)
    duty = ["DUTY"] if assigned else []
    uneven = any(shard.speed is not None for shard in found.shards)
    linked = any(shard.link is not None for shard in found.shards)
    columns = (
        *duty,
        "STATE",
        "TRANSPORT",
        ">KV TOKENS",
        ">FREE",
        ">REQUESTS",
        *([">SPEED"] if uneven else []),
        *([">LINK"] if linked else []),
    )
    table = render.table("SHARD", *columns)
    for shard in found.shards:
        pages = (shard.pages, shard.pages_free) if shard.pages else ()
        tokens = [f"{page_tokens * count:,}" for count in pages] or ["", ""]
        requests = str(len(shard.requests) or "")
        duty = [shard.duty or shard.role] if assigned else []
        state = render.state(shard.state)
        speed = [_share(shard.speed)] if uneven else []
        link = [_share(shard.link)] if linked else []
        table.add_row(shard.id, *duty, state, shard.transport, *tokens, requests, *speed, *link)
    return table


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.2f}" if share >= 0.1 else f"{share:.1g}"


def _requests(found: ClusterStatus, narrow: bool) -> Table:
    more = [] if narrow else [">CACHED", ">SP", "~KV (tokens)"]
    table = render.table("REQUEST", "STAGE", ">PROMPT", ">AGE", "OWNER", *more)
    for request in found.requests:
        places = ", ".join(
            f"{place.shard} {span.start}-{span.stop}"
            for place in request.placements
            for span in (*place.shared, place.span)
            if span.tokens
        )
        wide = [str(request.cached_tokens or ""), str(request.sp_degree or ""), places]
        table.add_row(
            request.request,
            request.stage,
            f"{request.prompt_tokens:,}",
            elapsed(request.age_s),
            request.owner,
            *([] if narrow else wide),
        )
    return table


def _note(service: ServiceStatus, child: Child) -> str:
    if service.waiting_for:
        return f"waits for {service.waiting_for}"
    ahead_s = service.counters.get("clock_ahead_s", 0.0)
    if abs(ahead_s) > APART_S:
        return f"its clock is {ahead_s:+.1f} s from the scheduler's"
    return child.last_exit
