"""`spsctl status`: the services, shards, requests and KV of a cluster at a glance."""

import asyncio
from typing import Annotated

import msgspec
import typer

from sps2.cli import render, runs
from sps2.cli.runs import Child, State
from sps2.cli.target import ConfigOption, NameOption, cluster_of
from sps2.common.config import Cluster
from sps2.common.errors import ServiceError
from sps2.common.messages import ClusterStatus, ServiceStatus, ShowCluster
from sps2.common.rpc import Peer
from sps2.services.greeting import APART_S

DEADLINE_S = 5.0


def status(
    as_json: Annotated[bool, typer.Option("--json", help="one object, for scripts")] = False,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Show what a cluster does. Exit code 1 unless it is ready."""
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
    peer = Peer(cluster.gateway_address, cluster.bus, "gateway")
    try:
        return await peer.call(ShowCluster(), DEADLINE_S)
    finally:
        await peer.close()


def _from_supervisor(cluster: Cluster, state: State | None, why: str) -> ClusterStatus:
    """What is known while the gateway does not answer."""
    services = tuple(
        ServiceStatus(service, "", "starting" if child.pid else "lost", child.pid)
        for service, child in (state.services if state else {}).items()
    )
    waiting_for = f"the gateway at {cluster.gateway_address} ({why})"
    return ClusterStatus(cluster.model, "", False, waiting_for, services, (), (), (), 0)


def show(cluster: Cluster, found: ClusterStatus, children: dict[str, Child]) -> None:
    """Print a status for people. `children` adds the supervisor's view: pids and restarts."""
    word = render.state("ready" if found.ready else "waiting")
    render.out.print(
        f"[bold]{cluster.name}[/]: {word}, {found.model}"
        f"{render.quantised(found.quantize)}, {cluster.http_url}"
    )
    if found.waiting_for:
        render.out.print(f"waits for {found.waiting_for}", style="yellow", markup=False)

    services = render.table("\nSERVICE", "STATE", ">PID", ">UP", ">MEMORY", ">RESTARTS", "NOTE")
    reported = {each.service: each for each in found.services}
    for name in dict.fromkeys([*reported, *children]):
        each = reported.get(name) or ServiceStatus(name, "", "starting")
        child = children.get(name, Child())
        services.add_row(
            name,
            render.state(each.state),
            str(each.pid or child.pid or ""),
            render.duration(each.up_s) if each.up_s else "",
            render.size(each.rss_bytes) if each.rss_bytes else "",
            str(child.exits or ""),
            _note(each, child),
        )
    render.out.print(services)

    if found.shards:
        shards = render.table("\nSHARD", "STATE", "TRANSPORT", ">PAGES", ">FREE", "REQUESTS")
        for shard in found.shards:
            pages = (str(shard.pages), str(shard.pages_free)) if shard.pages else ("", "")
            shards.add_row(
                shard.id,
                render.state(shard.state),
                shard.transport,
                *pages,
                ", ".join(shard.requests),
            )
        render.out.print(shards)

    if found.requests:
        requests = render.table(
            "\nREQUEST", "STAGE", ">PROMPT", ">CACHED", ">AGE", ">SP", "OWNER", "KV (tokens)"
        )
        for request in found.requests:
            requests.add_row(
                request.request,
                request.stage,
                str(request.prompt_tokens),
                str(request.cached_tokens or ""),
                render.duration(request.age_s),
                str(request.sp_degree or ""),
                request.owner,
                ", ".join(
                    f"{place.shard} {span.start}-{span.stop}"
                    for place in request.placements
                    for span in (*place.shared, place.span)
                    if span.tokens
                ),
            )
        render.out.print(requests)
    if found.leaked_pages:
        render.out.print(f"\n[red]{found.leaked_pages} KV pages have leaked[/]")


def _note(service: ServiceStatus, child: Child) -> str:
    if service.waiting_for:
        return f"waits for {service.waiting_for}"
    ahead_s = service.counters.get("clock_ahead_s", 0.0)
    if abs(ahead_s) > APART_S:
        return f"its clock is {ahead_s:+.1f} s from the scheduler's"
    return child.last_exit
