"""The processes of a tensor-parallel shard end together, whichever of them is told to."""

import asyncio
import os

from sps2.common.bus.peer import Peer, Server
from sps2.common.config import Bus
from sps2.common.messages import Peer as DataPeer
from sps2.services.tp_processes import Led, Loyalty, leading

from ..waiting import until

BUS = Bus(heartbeat_s=0.1)


async def test_a_follower_that_is_told_to_end_has_its_leader_end_first(monkeypatch) -> None:
    """So that the shard finishes its requests."""
    monkeypatch.setattr(os, "_exit", lambda status: None)
    stop, leaders = asyncio.Event(), asyncio.Event()
    loyalty = Loyalty(stop)
    server = Server(loyalty, BUS)
    follower = Peer(await server.start("tcp://127.0.0.1:0"), BUS, "decode-0.1")
    async with leading([Led(follower, DataPeer("x", "tcp://x", bytes(16)))], leaders):
        await until(lambda: loyalty.is_led)
        stop.set()
        await leaders.wait()
        released = asyncio.create_task(loyalty.released(1000.0))
        await asyncio.sleep(0)
        assert not released.done()
    await released
    await follower.close()
    await server.close()


async def test_one_that_nobody_leads_ends_at_once() -> None:
    await Loyalty(asyncio.Event()).released(1000.0)
