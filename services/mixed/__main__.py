"""Runs a process of a mixed shard: `python -m sps2.services.mixed --config FILE --index I`."""

import asyncio

from sps2.common.config import Cluster
from sps2.services.decode.follower import FollowerService
from sps2.services.decode.kv.disk import disk_for
from sps2.services.decode.kv.pool_size import pool_for
from sps2.services.decode.service import DecodeService
from sps2.services.prefill.service import PrefillService
from sps2.services.run import About, run
from sps2.services.shard import Counting, ready_shard


async def serve(cluster: Cluster, about: About, stop: asyncio.Event) -> None:
    async with ready_shard(cluster, about, "mixed") as shard:
        pool = await pool_for(shard)
        disk = await disk_for(shard, pool)
        parts = shard.model, shard.plane
        traces, grammars = about.traces, shard.grammars
        if about.rank:
            follower = FollowerService(*parts, pool, shard.data)
            await follower.start()
            part = PrefillService(*parts, shard.data, pages=follower, traces=traces)
            async with shard.following([follower, part], stop):
                await stop.wait()
            part.close()
            await follower.close()
            return
        led = await shard.led()
        decode = DecodeService(*parts, pool, shard.data, led, traces, grammars, disk)
        await decode.start()
        about.tokens = decode.tokens
        prefill = PrefillService(*parts, shard.data, led, decode, traces, grammars)
        if not led:
            decode.share(prefill.passes)
        services: list[Counting] = [prefill, decode]
        pages = pool.pages, pool.page_tokens
        async with shard.member(services, stop, led, *pages, decode.reports, prefill.own_gflops):
            await stop.wait()
        prefill.close()
        await decode.close()


if __name__ == "__main__":
    run("mixed", serve)
