"""Runs a shard that prefills and decodes: `python -m sps2.services.any --config FILE --index I`."""

import asyncio

from sps2.common.config import Cluster
from sps2.services.decode.pool import pool_for
from sps2.services.decode.service import DecodeService
from sps2.services.prefill.service import PrefillService
from sps2.services.run import About, run
from sps2.services.shard import Counting, ready_shard


async def serve(cluster: Cluster, about: About, stop: asyncio.Event) -> None:
    async with ready_shard(cluster, about, "any") as shard:
        pool = await pool_for(shard)
        decode = DecodeService(shard.model, shard.plane, pool, shard.data)
        await decode.start()
        about.tokens = decode.tokens
        prefill = PrefillService(shard.model, shard.plane, shard.data, pages=decode)
        services: list[Counting] = [prefill, decode]
        async with shard.member(services, (), pool.pages, pool.page_tokens, decode):
            await stop.wait()
        prefill.close()
        await decode.close()


if __name__ == "__main__":
    run("any", serve)
