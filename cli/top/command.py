"""`spsctl top`: shows a cluster live, or once."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import msgspec
import typer

from sps2.cli import render
from sps2.cli.target import ConfigOption, NameOption, cluster_of
from sps2.cli.top.controls import Controls
from sps2.cli.top.monitor import Monitor
from sps2.cli.top.snapshot import Picture
from sps2.cli.top.view import view
from sps2.common.bus.gateways import Gateways
from sps2.common.bus.telemetry import Subscriber
from sps2.common.config import Cluster
from sps2.common.errors import Invalid, ServiceError
from sps2.common.messages import ShowCluster

ASK_S = 5.0
"""Seconds between two requests for the gateway's status; all else comes as events."""
DEADLINE_S = 2.0
SETTLE_S = 5.0
"""How long `--once` waits for data that is still missing."""


def top(
    once: Annotated[bool, typer.Option("--once", help="Draw one picture, then end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one object a line, every second or --once.")
    ] = False,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Watch a cluster: load, shards, links between them, requests. Press ? for the keys.

    With --once the exit code is 1 unless the cluster is ready, that is, accepts requests.
    """
    cluster = cluster_of(name, config)
    if not (once or as_json or render.out.is_terminal):
        raise Invalid("this is no terminal: `spsctl top --once` prints one picture")
    with suppress(KeyboardInterrupt):
        asyncio.run(_watch(cluster, once, as_json))


async def _watch(cluster: Cluster, once: bool, as_json: bool) -> None:
    monitor = Monitor(cluster.name, cluster.bus)
    async with _informed(monitor, cluster) as news:
        if once:
            picture = await _settled(monitor, news)
            _print(picture, as_json)
            if picture.cluster.state != "ready":
                raise typer.Exit(1)
        elif as_json:
            await _settled(monitor, news)
            while True:
                _print(monitor.picture(time.monotonic()), as_json)
                await asyncio.sleep(cluster.bus.heartbeat_s)
        else:
            from sps2.cli.top.terminal import Screen  # Unix only

            await Screen(monitor, render.out, time.monotonic).run()


@asynccontextmanager
async def _informed(monitor: Monitor, cluster: Cluster) -> AsyncIterator[asyncio.Event]:
    """Feed the monitor within the block; the yielded event is set whenever something comes."""
    news = asyncio.Event()
    gateway = Gateways(cluster.gateway_addresses, cluster.bus)

    async def ask() -> None:
        while True:
            try:
                status = await gateway.call(ShowCluster(), DEADLINE_S)
                monitor.take(status, time.monotonic())
            except ServiceError:
                monitor.miss(f"the gateway at {cluster.gateway_place}")
            news.set()
            await asyncio.sleep(ASK_S)

    async def listen(events: Subscriber) -> None:
        async for event in events:
            monitor.hear(event, time.monotonic())
            news.set()

    async with Subscriber(cluster.subscribe_address, cluster.bus) as events:
        tasks = [asyncio.create_task(work) for work in (listen(events), ask())]
        try:
            yield news
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await gateway.close()


async def _settled(monitor: Monitor, news: asyncio.Event) -> Picture:
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            while not monitor.settled():
                news.clear()
                await news.wait()
    return monitor.picture(time.monotonic())


def _print(picture: Picture, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(picture).decode(), flush=True)
    else:
        render.out.print(view(picture, Controls(), max(80, render.out.width)), soft_wrap=True)
