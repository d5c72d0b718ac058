"""Runs a process of a prefill shard: `python -m sps2.services.prefill --config FILE --index I`."""

import asyncio

from sps2.common.config import Cluster
from sps2.services.prefill.service import PrefillService
from sps2.services.run import About, run
from sps2.services.shard import ready_shard


async def serve(cluster: Cluster, about: About, stop: asyncio.Event) -> None:
    async with ready_shard(cluster, about, "prefill") as shard:
        led = [] if about.rank else await shard.led()
        service = PrefillService(
            shard.model,
            shard.plane,
            shard.data,
            led,
            traces=about.traces,
            grammars=shard.grammars,
        )
        leads = shard.member([service], stop, led, own_gflops=service.own_gflops)
        async with shard.following([service], stop) if about.rank else leads:
            await stop.wait()
        service.close()


if __name__ == "__main__":
    run("prefill", serve)
