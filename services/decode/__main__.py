"""Runs a process of a decode shard: `python -m sps2.services.decode --config FILE --index I`."""

import asyncio

import psutil

from sps2.common.config import Cluster
from sps2.common.model.llama import Llama
from sps2.common.model.pages import PagePool, page_bytes
from sps2.common.spans import pages_for
from sps2.services.decode.follower import FollowerService
from sps2.services.decode.service import DecodeService
from sps2.services.run import About, run
from sps2.services.shard import ready_shard

POOL_SHARE = 0.4
"""Of the memory available at start, for the pools of all decode shards of one machine."""


async def serve(cluster: Cluster, about: About, stop: asyncio.Event) -> None:
    async with ready_shard(cluster, about, "decode") as shard:
        model, plane, data = shard.model, shard.plane, shard.data
        pages = await shard.team.agreed(_pages(cluster, model))
        pool = PagePool(model.config, pages, cluster.kv.page_tokens, model.dtype)
        if about.rank:
            follower = FollowerService(model, plane, pool, data)
            await follower.start()
            async with shard.following(follower, stop):
                await stop.wait()
            await follower.close()
            return
        led = await shard.led()
        service = DecodeService(model, plane, pool, data, led)
        await service.start()
        async with shard.member(service, led, pool.pages, pool.page_tokens, service):
            await stop.wait()
        await service.close()


def _pages(cluster: Cluster, model: Llama) -> int:
    """As configured, else a share of the free memory, and no more than 16 longest prompts."""
    page_tokens = cluster.kv.page_tokens
    if cluster.kv.pool_tokens:
        return pages_for(cluster.kv.pool_tokens, page_tokens)
    processes = cluster.decode * cluster.tp_of("decode")
    share = psutil.virtual_memory().available * POOL_SHARE / processes
    affordable = int(share) // page_bytes(model.config, page_tokens, model.dtype)
    return min(affordable, pages_for(16 * model.config.max_context, page_tokens))


if __name__ == "__main__":
    run("decode", serve)
