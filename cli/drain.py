"""`spsctl drain`: gives a shard no new work, and waits until it has none."""

import asyncio
from typing import Annotated

import typer

from sps2.cli import render
from sps2.cli.target import ConfigOption, NameOption, reachable
from sps2.common.bus.gateways import Gateways
from sps2.common.config import Cluster
from sps2.common.errors import PeerLost
from sps2.common.messages import Drain, Undrain

DEADLINE_S = 10.0


def drain(
    shard: Annotated[str, typer.Argument(help="For example decode-1.")],
    undo: Annotated[bool, typer.Option("--undo", help="Give it work again.")] = False,
    timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds after which its requests go on on other shards, with what they have.",
        ),
    ] = 60.0,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Give a shard no new work, and wait until it has finished what it has.

    Then it can be stopped without harm. It stays drained until --undo, or until it restarts; a
    restart of the scheduler changes nothing. Its cached pages are not used meanwhile. After Ctrl-C
    it drains on, and keeps its requests. The last shard that prefills or decodes is not drained.
    """
    cluster = reachable(name, config)
    if undo:
        asyncio.run(_undo(cluster, shard))
        print(f"{shard} gets work again")
        return
    asyncio.run(_drain(cluster, shard, timeout))
    print(f"{shard} is drained; `spsctl drain {shard} --undo` gives it work again")


async def _undo(cluster: Cluster, shard: str) -> None:
    gateway = Gateways(cluster.gateway_addresses, cluster.bus)
    try:
        await gateway.call(Undrain(shard), DEADLINE_S)
    finally:
        await gateway.close()


async def _drain(cluster: Cluster, shard: str, timeout_s: float) -> None:
    """Returns when the shard has no work. Raises PeerLost if that is never known."""
    gateway = Gateways(cluster.gateway_addresses, cluster.bus)
    left: tuple[str, ...] | None = None
    try:
        with render.err.status(f"draining {shard}") as line:
            async with gateway.stream(Drain(shard, timeout_s)) as items:
                async for unfinished in items:
                    left = unfinished.requests
                    shown = f"draining {shard}: {render.counted(len(left), 'request')} left"
                    line.update(shown)
                    if left and not render.err.is_terminal:
                        render.note(shown)
    except PeerLost as lost:
        if left is None:
            raise
        raise PeerLost(lost.peer, f"{lost}; {shard} drains on, ask again") from lost
    finally:
        await gateway.close()
    if left != ():
        raise PeerLost(shard, f"{shard} has ended, or drains no more")
