"""Runs the KV directory: `python -m sps2.services.kvdir --config FILE`."""

import asyncio

from sps2.common.bus.peer import Server
from sps2.common.config import Cluster
from sps2.common.messages import Leases
from sps2.services.kvdir.directory import Directory
from sps2.services.kvdir.service import DirectoryService
from sps2.services.run import About, run, sending_heartbeats


async def serve(cluster: Cluster, about: About, stop: asyncio.Event) -> None:
    directory = Directory()
    about.counters = lambda: _counters(directory.leases())
    server = Server([DirectoryService(directory), about], cluster.bus)
    async with sending_heartbeats(about, cluster):
        await server.start(about.listen_at(cluster.kvdir.bus_port))
        about.started = True
        await stop.wait()
        await server.close()


def _counters(leases: Leases) -> dict[str, float]:
    return {
        "kv_leases": float(len(leases.leases)),
        "kv_leaked_pages": float(leases.leaked_pages),
        "kv_cached_pages": float(leases.cached_pages),
        "kv_evicted_pages": float(leases.evicted_pages),
        "kv_cached_disk_pages": float(leases.disk_pages),
    }


if __name__ == "__main__":
    run("kvdir", serve)
