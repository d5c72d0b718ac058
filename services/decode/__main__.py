"""Runs a process of a decode shard: `python -m sps2.services.decode --config FILE --index I`."""

import asyncio

from sps2.common.config import Cluster
from sps2.services.decode.follower import FollowerService
from sps2.services.decode.kv.disk import disk_for
from sps2.services.decode.kv.pool_size import pool_for
from sps2.services.decode.service import DecodeService
from sps2.services.run import About, run
from sps2.services.shard import ready_shard


async def serve(cluster: Cluster, about: About, stop: asyncio.Event) -> None:
    async with ready_shard(cluster, about, "decode") as shard:
        model, plane, data = shard.model, shard.plane, shard.data
        pool = await pool_for(shard)
        disk = await disk_for(shard, pool)
        if about.rank:
            follower = FollowerService(model, plane, pool, data, disk)
            await follower.start()
            async with shard.following([follower], stop):
                await stop.wait()
            await follower.close()
            return
        led = await shard.led()
        service = DecodeService(model, plane, pool, data, led, about.traces, shard.grammars, disk)
        await service.start()
        about.tokens = service.tokens
        async with shard.member(
            [service], stop, led, pool.pages, pool.page_tokens, service.reports
        ):
            await stop.wait()
        await service.close()


if __name__ == "__main__":
    run("decode", serve)
