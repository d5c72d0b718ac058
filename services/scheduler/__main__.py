"""Runs the scheduler and the telemetry hub: `python -m sps2.services.scheduler --config FILE`."""

import asyncio

from sps2.common.bus.peer import Peer, Server
from sps2.common.bus.telemetry import Hub
from sps2.common.config import Cluster
from sps2.common.model.config import read
from sps2.common.models import fingerprint, item_bytes, locate
from sps2.services.run import About, run, sending_heartbeats
from sps2.services.scheduler.csa_thresholds import load
from sps2.services.scheduler.meetings import Meetings
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.service import SchedulerService


async def serve(cluster: Cluster, about: About, stop: asyncio.Event) -> None:
    ports = cluster.telemetry
    places = about.listen_at(ports.publish_port), about.listen_at(ports.subscribe_port)
    hub = Hub(*places, cluster.bus)
    await hub.start()
    directory = Peer(cluster.kvdir_address, cluster.bus, name="kvdir")
    async with sending_heartbeats(about, cluster) as telemetry:
        model = f"{fingerprint(locate(cluster.model))} {cluster.dtype} {cluster.quantize}"
        service = SchedulerService(
            cluster, _schemes(cluster), model, directory, telemetry, about.traces
        )
        about.missing, about.counters = service.obstacle, service.counters
        handlers = [service, service.log, service.pins, service.retirement, Meetings()]
        server = Server([*handlers, about, about.traces], cluster.bus)
        await server.start(about.listen_at(cluster.scheduler.bus_port))
        about.started = True
        watching = asyncio.create_task(service.watch_room())
        await stop.wait()
        watching.cancel()
        await asyncio.wait({watching})
        await server.close()
        await service.close()
    await directory.close()
    await hub.close()


def _schemes(cluster: Cluster) -> Schemes:
    folder = locate(cluster.model)
    config = read(folder)
    return Schemes(
        config,
        item_bytes(cluster.dtype, folder, config),
        cluster.sharing,
        cluster.attention,
        load(folder, fingerprint(folder)),
        cluster.tp,
    )


if __name__ == "__main__":
    run("scheduler", serve)
