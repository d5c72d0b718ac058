"""Runs the joining service: `python -m sps2.services.joining --config FILE`."""

import asyncio
from contextlib import nullcontext

from sps2.common import keys
from sps2.common.bus.peer import Peer, Server
from sps2.common.config import Cluster
from sps2.common.errors import Invalid
from sps2.common.messages.schema import schema_hash
from sps2.common.models import locate
from sps2.services.compatibility import VERSION
from sps2.services.joining.hello import Hello, listen
from sps2.services.joining.mdns import announced
from sps2.services.joining.model_files import ModelFiles
from sps2.services.joining.numbers import Numbers
from sps2.services.joining.service import InvitedService, JoinedService
from sps2.services.run import About, run, sending_heartbeats


async def serve(cluster: Cluster, about: About, stop: asyncio.Event) -> None:
    key = keys.cluster_key(cluster.bus)
    if key is None:
        raise Invalid("nobody can join a cluster without keys: `spsctl up --invite` makes them")
    files, numbers = ModelFiles(locate(cluster.model)), Numbers(cluster)
    scheduler = Peer(cluster.scheduler_address, cluster.bus, name="scheduler")
    invited = Server(
        InvitedService(cluster, scheduler, files, numbers),
        cluster.bus,
        max_calls=64,
        max_client_calls=4,
        audience="invited",
    )
    joined = Server([JoinedService(scheduler, files, numbers), about], cluster.bus)
    port = cluster.joining.first_port
    async with sending_heartbeats(about, cluster):
        await invited.start(about.listen_at(port + 1))
        await joined.start(about.listen_at(port + 2))
        word = Hello(cluster.name, VERSION, schema_hash(), key.public)
        hello = await listen(about.host, port, word)
        is_announced = cluster.joining.announce
        async with announced(about.host, port, word) if is_announced else nullcontext():
            about.started = True
            await stop.wait()
        hello.close()
        await invited.close()
        await joined.close()
    await scheduler.close()


if __name__ == "__main__":
    run("joining", serve)
