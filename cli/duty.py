"""`spsctl duty`: what a mixed shard is used for, while it runs."""

import asyncio
from typing import Annotated

import typer

from sps2.cli.target import ConfigOption, NameOption, reachable
from sps2.common.bus.gateways import Gateways
from sps2.common.config import Cluster
from sps2.common.messages import Role, SetDuty

DEADLINE_S = 5.0


def duty(
    shard: Annotated[str, typer.Argument(help="A mixed shard, for example mixed-0.")],
    duty: Annotated[
        Role,
        typer.Argument(help="What it does for new requests: prefill, decode, or both (mixed)."),
    ],
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Use a mixed shard only for prefill, only for decode, or for both.

    Requests under way go on as they are. Where a shard only prefills or only decodes, KV moves from
    those that prefill to those that decode. A duty is refused that leaves nobody to prefill or to
    decode. It is lost when the scheduler restarts: `scheduler.prefill_only` and `decode_only` stay.
    """
    asyncio.run(_set(reachable(name, config), shard, duty))
    print(f"{shard}: {duty}")


async def _set(cluster: Cluster, shard: str, duty: Role) -> None:
    peer = Gateways(cluster.gateway_addresses, cluster.bus)
    try:
        await peer.call(SetDuty(shard, duty), DEADLINE_S)
    finally:
        await peer.close()
