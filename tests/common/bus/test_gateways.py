"""Calls go to a gateway that answers, and to another if it is lost before its answer."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from sps2.common.bus.gateways import GATEWAY, Gateways
from sps2.common.bus.peer import Server
from sps2.common.config import Bus
from sps2.common.errors import Invalid, PeerLost, Refused
from sps2.common.messages import Describe, Info, Record, Recorded, ShowCluster

BUS = Bus(heartbeat_s=0.2, missed_heartbeats=100)
NOWHERE = "tcp://127.0.0.1:1"


class Door:
    """Answers as a gateway, and counts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0
        self.began = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.error: Exception | None = None
        self.server = Server(self, BUS)

    async def describe(self, request: Describe) -> Info:
        self.calls += 1
        self.began.set()
        await self.goes_on.wait()
        if self.error is not None:
            raise self.error
        return Info(self.name, 1, "0", "ready")

    async def record(self, request: Record) -> AsyncIterator[Recorded]:
        self.calls += 1
        self.began.set()
        if not request.follow:
            await self.goes_on.wait()
        for line in (b"one", b"two"):
            yield Recorded((line, self.name.encode()))
            await self.goes_on.wait()


@pytest.fixture
async def doors() -> AsyncIterator[list[Door]]:
    doors = [Door("first"), Door("second")]
    for door in doors:
        await door.server.start("tcp://127.0.0.1:0")
    yield doors
    for door in doors:
        await door.server.close()


@pytest.fixture
async def gateways(doors: list[Door]) -> AsyncIterator[Gateways]:
    gateways = Gateways([door.server.address for door in doors], BUS)
    yield gateways
    await gateways.close()


async def asked(doors: list[Door]) -> tuple[Door, Door]:
    """The gateway that was called, and the other."""
    waiting = [asyncio.create_task(door.began.wait()) for door in doors]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for each in waiting:
        each.cancel()
    first, second = doors if doors[0].began.is_set() else reversed(doors)
    return first, second


async def test_a_call_goes_to_one_that_answers(doors: list[Door]) -> None:
    gateways = Gateways([NOWHERE, doors[0].server.address, NOWHERE], BUS)
    for _ in range(3):
        assert (await gateways.call(Describe())).service == "first"
    await gateways.close()


async def test_a_call_that_is_lost_goes_to_another(doors: list[Door], gateways: Gateways) -> None:
    for door in doors:
        door.goes_on.clear()
    calling = asyncio.create_task(gateways.call(Describe()))
    first, second = await asked(doors)
    second.goes_on.set()
    await first.server.close()
    assert (await calling).service == second.name


async def test_a_gateway_that_retires_takes_no_calls(doors: list[Door], gateways: Gateways) -> None:
    for door in doors:
        await gateways.call(Describe())
        door.server.retire(PeerLost(GATEWAY, "it is shutting down"))
        if door is doors[0]:
            assert (await gateways.call(Describe())).service == doors[1].name
    with pytest.raises(PeerLost, match="it is shutting down"):
        await gateways.call(Describe())


async def test_calls_in_work_end_while_a_gateway_retires(
    doors: list[Door], gateways: Gateways
) -> None:
    for door in doors:
        door.goes_on.clear()
    calling = asyncio.create_task(gateways.call(Describe()))
    first, _ = await asked(doors)
    first.server.retire(PeerLost(GATEWAY, "it is shutting down"))
    first.goes_on.set()
    assert (await calling).service == first.name


async def test_a_stream_without_an_item_goes_to_another(
    doors: list[Door], gateways: Gateways
) -> None:
    for door in doors:
        door.goes_on.clear()

    async def received() -> list[bytes]:
        async with gateways.stream(Record()) as items:
            return [item.lines[1] async for item in items]

    receiving = asyncio.create_task(received())
    first, second = await asked(doors)
    second.goes_on.set()
    await first.server.close()
    assert await receiving == [second.name.encode()] * 2


async def test_a_stream_that_has_begun_is_lost(doors: list[Door], gateways: Gateways) -> None:
    for door in doors:
        door.goes_on.clear()
    async with gateways.stream(Record(follow=True)) as items:
        assert (await anext(items)).lines[0] == b"one"
        first, second = await asked(doors)
        await first.server.close()
        with pytest.raises(PeerLost):
            await anext(items)
        assert not second.calls


async def test_losses_of_others_and_other_errors_are_raised(
    doors: list[Door], gateways: Gateways
) -> None:
    errors: list[Exception] = [PeerLost("prefill-0", "prefill-0 was lost"), Refused("full")]
    for error in errors:
        for door in doors:
            door.error = error
        with pytest.raises(type(error), match=str(error)):
            await gateways.call(Describe())
    assert sum(door.calls for door in doors) == 2
    with pytest.raises(Invalid, match="unknown method"):
        await gateways.call(ShowCluster())


async def test_all_are_away() -> None:
    gateways = Gateways([NOWHERE, "tcp://127.0.0.1:2"], BUS, connect_s=0.1)
    with pytest.raises(PeerLost, match="nobody answers at"):
        await gateways.call(Describe())
    await gateways.close()


def test_there_must_be_one() -> None:
    with pytest.raises(Invalid, match="address of a gateway"):
        Gateways([], BUS)
