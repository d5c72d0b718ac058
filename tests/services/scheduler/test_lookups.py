"""Pages on disk are read into memory while their request waits in the queue."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from sps2.common.bus.peer import Peer
from sps2.common.errors import Refused
from sps2.common.messages import (
    Cached,
    Deposited,
    Filled,
    Finished,
    Held,
    Hold,
    Lookup,
    OnDisk,
    Prefill,
    Prefilled,
    Sampling,
    Submit,
)

from ...waiting import until
from .test_core import PAGE
from .test_service import Play, finished, leased, stage, submit

FAST_S, SLOW_S = 1e-9, 10.0
QUEUE = {"policy": "fcfs"}


class Disk(Play):
    """As `Play`; what happens is noted, in its order. A prefill of "busy" waits for its gate."""

    def __init__(self) -> None:
        super().__init__()
        self.hashes: tuple[bytes, ...] = ()
        self.noted: list[tuple[str, str, bool]] = []
        """What, of which request, and whether pages are read from disk for it."""
        self.gate = asyncio.Event()
        self.reading = asyncio.Event()
        self.reading.set()
        self.refused = False

    async def lookup(self, request: Lookup) -> Cached:
        self.hashes = request.hashes
        return await super().lookup(request)

    async def hold(self, request: Hold) -> AsyncIterator[Held | Filled]:
        self.noted.append(("hold", request.request, bool(request.from_disk)))
        if request.from_disk:
            await self.reading.wait()
            if self.refused:
                raise Refused("it cannot be read")
        async for item in super().hold(request):
            yield item

    async def prefill(self, request: Prefill) -> AsyncIterator[Prefilled | Deposited]:
        self.noted.append(("prefill", request.request, False))
        if request.request == "busy":
            await self.gate.wait()
        async for item in super().prefill(request):
            yield item

    def of(self, request: str) -> list[tuple[str, str, bool]]:
        return [each for each in self.noted if each[1].partition("+")[0] == request]


def prompt(name: str) -> Submit:
    return submit(name, 4 * PAGE + 3, sampling=Sampling(2, 0))


async def waiting(play: Disk, peer: Peer, read_s: float) -> "tuple[asyncio.Task[Finished], ...]":
    """A request that is prefilled, and one behind it whose first pages are on disk."""
    await finished(peer, prompt("first"))
    await until(lambda: not leased(play))
    directory = play._directory
    directory.drop("decode-0")
    news = OnDisk(play.hashes, (), read_s)
    directory.report("decode-0", "decode-0/1", (), (), (), news)
    busy = asyncio.create_task(finished(peer, submit("busy", 8 * PAGE, cache_salt="other")))
    await until(lambda: ("prefill", "busy", False) in play.noted)
    second = asyncio.create_task(finished(peer, prompt("second")))
    return busy, second


async def test_they_are_read_before_it_is_its_turn() -> None:
    play = Disk()
    async with stage(play, **QUEUE) as peer:
        tasks = await waiting(play, peer, FAST_S)
        await until(lambda: play.of("second"))
        await until(lambda: "second+disk" not in leased(play))
        assert play.of("second") == [("hold", "second+disk", True)]
        assert [run.on_disk for run in play._directory.find(play.hashes[:4])] == [False]
        assert play._directory.room().free["decode-0"] >= 4, "they are idle: others may have them"
        play.gate.set()
        await asyncio.gather(*tasks)
    (_, *later) = play.of("second")
    assert later == [("hold", "second", False), ("prefill", "second", False)]


async def test_a_request_whose_turn_comes_meanwhile_goes_on() -> None:
    play = Disk()
    play.reading.clear()
    async with stage(play, **QUEUE) as peer:
        busy, second = await waiting(play, peer, FAST_S)
        await until(lambda: play.of("second"))
        play.gate.set()
        await busy
        await until(lambda: ("hold", "second", True) in play.noted)
        play.reading.set()
        await second
        await until(lambda: not leased(play))


async def test_what_is_computed_faster_is_not_read() -> None:
    play = Disk()
    async with stage(play, **QUEUE) as peer:
        tasks = await waiting(play, peer, SLOW_S)
        play.gate.set()
        await asyncio.gather(*tasks)
    assert not any(from_disk for _, _, from_disk in play.noted)


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_disk_that_fails_costs_no_request(leaves: bool) -> None:
    play = Disk()
    play.refused = True
    async with stage(play, **QUEUE) as peer:
        busy, second = await waiting(play, peer, FAST_S)
        await until(lambda: play.of("second"))
        if leaves:
            second.cancel()
        else:
            play._directory.report(
                *("decode-0", "decode-0/1", (), (), ()), OnDisk((), play.hashes, FAST_S)
            )
        play.gate.set()
        await asyncio.gather(busy, second, return_exceptions=leaves)
        await until(lambda: not leased(play))
