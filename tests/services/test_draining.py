"""How a shard ends: it tells the scheduler, and waits until it has no work."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from sps2.common.bus.peer import Peer, Server
from sps2.common.config import Bus, Cluster, Scheduler
from sps2.common.messages import (
    Done,
    Greet,
    Greeted,
    KeepDraining,
    Register,
    Retire,
    Unfinished,
)
from sps2.services import draining
from sps2.services.compatibility import greeted
from sps2.services.draining import Draining, retire
from sps2.services.shard import Membership
from sps2.services.tasks import forever

from ..waiting import until
from .test_membership import SHARD

BUS = Bus(heartbeat_s=0.1)


class Asked:
    """A scheduler that says what is left of a shard's work."""

    def __init__(self) -> None:
        self.registered: list[Register] = []
        self.retired: list[Retire] = []
        self.is_done = asyncio.Event()

    async def greet(self, request: Greet) -> Greeted:
        return greeted("scheduler", request)

    async def register(self, request: Register) -> AsyncIterator[Done]:
        self.registered.append(request)
        yield Done()
        await forever()

    async def retire(self, request: Retire) -> AsyncIterator[Unfinished]:
        self.retired.append(request)
        yield Unfinished(("r",))
        await self.is_done.wait()
        yield Unfinished(())


def described(address: str, drain_s: float = 1000.0) -> Cluster:
    port = int(address.rpartition(":")[2])
    return Cluster(bus=BUS, scheduler=Scheduler(bus_port=port, drain_s=drain_s))


async def test_it_waits_until_it_has_no_work() -> None:
    scheduler = Asked()
    server = Server(scheduler, BUS)
    cluster = described(await server.start("tcp://127.0.0.1:0"))
    ending = asyncio.create_task(retire("decode-0", cluster))
    await until(lambda: scheduler.retired)
    assert scheduler.retired == [Retire("decode-0", 1000.0)]
    await asyncio.sleep(0)
    assert not ending.done()
    scheduler.is_done.set()
    await ending
    await server.close()


async def test_it_waits_no_longer_than_is_stated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(draining, "HANDOVER_S", 0.05)
    server = Server(Asked(), BUS)
    await retire("decode-0", described(await server.start("tcp://127.0.0.1:0"), drain_s=0.05))
    assert "decode-0 ends with what it has: it is late" in caplog.text
    await server.close()


async def test_it_ends_at_once_with_its_scheduler() -> None:
    """As when the whole cluster ends."""
    scheduler = Asked()
    server = Server(scheduler, BUS)
    cluster = described(await server.start("tcp://127.0.0.1:0"))
    ending = asyncio.create_task(retire("decode-0", cluster))
    await until(lambda: scheduler.retired)
    await server.close()
    await ending
    await retire("decode-0", cluster)


async def test_a_shard_that_drains_says_so_to_the_next_scheduler() -> None:
    scheduler, drains = Asked(), Draining()
    server = Server(scheduler, BUS)
    address = await server.start("tcp://127.0.0.1:0")
    peer = Peer(address, BUS, "scheduler")
    membership = Membership(SHARD, peer, Peer(address, BUS, "kvdir"), BUS, None, drains)
    async with membership.kept():
        await until(lambda: scheduler.registered)
        await drains.keep_draining(KeepDraining(True))
        await server.close()
        server = Server(scheduler, BUS)
        await server.start(address)
        await until(lambda: len(scheduler.registered) == 2)
    assert [each.draining for each in scheduler.registered] == [False, True]
    await peer.close()
    await server.close()
