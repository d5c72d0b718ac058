"""A shard whose scheduler is away behind something that accepts for it, as docker-proxy does."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from sps2.common.bus.peer import Peer, Server
from sps2.common.config import Bus
from sps2.common.messages import Done, Greet, Greeted, Register, Shard
from sps2.common.messages import Peer as DataPeer
from sps2.services.compatibility import greeted
from sps2.services.shard import Membership
from sps2.services.tasks import forever

from ..waiting import until

BUS = Bus(heartbeat_s=0.1)
SHARD = Shard("prefill-0", "prefill", 1, "tcp://x", DataPeer("prefill-0/1", "tcp://x", bytes(16)))


class Scheduler:
    async def greet(self, request: Greet) -> Greeted:
        return greeted("scheduler", request)

    async def register(self, request: Register) -> AsyncIterator[Done]:
        yield Done()
        await forever()


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(4096):
            writer.write(data)
    writer.close()


class Front:
    """Accepts, and hangs up as long as there is nobody behind it."""

    def __init__(self) -> None:
        self.behind = 0
        self.calls = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.calls += 1
        if not self.behind:
            writer.close()
            return
        there, here = await asyncio.open_connection("127.0.0.1", self.behind)
        await asyncio.gather(carry(reader, here), carry(there, writer))


@pytest.mark.timeout(60)
async def test_a_scheduler_away_behind_a_proxy_is_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The refusal that this looks like comes at once, again and again: the loop must not spin."""
    caplog.set_level(logging.WARNING, "sps2.services.shard")
    front = Front()
    server = await asyncio.start_server(front.accept, "127.0.0.1", 0)
    address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    scheduler = Peer(address, BUS, "scheduler")
    membership = Membership(SHARD, scheduler, Peer(address, BUS, "kvdir"), BUS, None)
    there = Server(Scheduler(), BUS)
    async with membership.kept():
        await until(lambda: front.calls > 6)  # it has been refused by now
        assert membership.missing() == "the scheduler"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        await there.start(f"tcp://127.0.0.1:{port}")
        front.behind = port
        await until(lambda: not membership.missing())
    assert not caplog.records
    await there.close()
    await scheduler.close()
    server.close()
