"""A joining service that runs, with keys, and a scheduler behind it that knows some shards."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sps2.cli import ports
from sps2.common import keys
from sps2.common.bus.peer import Server
from sps2.common.config import Bus, Cluster, Joining
from sps2.common.config import Scheduler as Section
from sps2.common.keys.invites import Invitations
from sps2.common.keys.join_code import JoinCode, fingerprint
from sps2.common.keys.keyring import Keyring
from sps2.common.messages import Done, FleetStatus, Forget, ShardStatus, ShowFleet
from sps2.services.joining.__main__ import serve
from sps2.services.run import About

from ...waiting import until


class Scheduler:
    """Knows two configured mixed shards, and one that joined; notes which have left."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    async def show_fleet(self, request: ShowFleet) -> FleetStatus:
        shards = tuple(ShardStatus(f"mixed-{n}", "mixed", "ready") for n in (0, 1, 2))
        return FleetStatus(shards, (), "")

    async def forget(self, request: Forget) -> Done:
        self.forgotten.append(request.shard)
        return Done()


class House:
    """A cluster's joining service, and the codes to it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.invitations = Invitations(Path(cluster.bus.keys))
        self.scheduler = Scheduler()

    def code(self, lifetime: timedelta = timedelta(hours=1), joins: int = 4) -> JoinCode:
        key = keys.cluster_key(self.cluster.bus)
        assert key is not None
        _, secret = self.invitations.add(lifetime, joins)
        port = self.cluster.joining.first_port
        return JoinCode("127.0.0.1", port, secret, fingerprint(key.public))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Serve while the block runs."""
        scheduler = Server(self.scheduler, self.cluster.bus)
        await scheduler.start(self.cluster.scheduler_address)
        stop, about = asyncio.Event(), About("joining")
        running = asyncio.create_task(serve(self.cluster, about, stop))
        await until(lambda: about.started or running.done())
        try:
            yield
        finally:
            stop.set()
            await running
            await scheduler.close()


@pytest.fixture
def house(checkpoint: Callable[[str], Path], tmp_path: Path) -> House:
    return make_house(tmp_path / "keys", checkpoint("smollm2"))


def make_house(folder: Path, model: Path, **more: Any) -> House:
    Keyring(folder).make("here")
    port = ports.free_base()
    return House(
        Cluster(
            name="here",
            model=str(model),
            prefill=0,
            decode=0,
            mixed=2,
            bus=Bus(keys=str(folder)),
            scheduler=Section(bus_port=port),
            joining=Joining(first_port=port + 1),
            **more,
        )
    )
