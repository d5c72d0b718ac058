"""The scheduler on the bus, with a real directory and shards that follow a script."""

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType

import pytest

from sps2.common import messages
from sps2.common.bus.peer import Peer, Server
from sps2.common.bus.telemetry import Publisher
from sps2.common.config import Bus, Cluster, Kv, Scheduler
from sps2.common.errors import Invalid, PeerLost, Preempted, ServiceError
from sps2.common.messages import (
    Announce,
    Commit,
    Committed,
    Decode,
    Decoded,
    Deposited,
    Describe,
    Done,
    Exchanged,
    Filled,
    Finished,
    Follower,
    Grow,
    Held,
    Hold,
    Info,
    Join,
    Prefill,
    Prefilled,
    Register,
    Reserve,
    Sampling,
    Shard,
    Short,
    Submit,
    Token,
)
from sps2.common.messages.directory import Room
from sps2.services.kvdir.directory import Directory
from sps2.services.kvdir.service import DirectoryService
from sps2.services.scheduler import job
from sps2.services.scheduler.events import Joined
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.service import SchedulerService
from sps2.services.tasks import forever

from ...waiting import until
from .test_core import CONFIG, PAGE, SHARING

BUS = Bus(heartbeat_s=0.1)
PAGES = 64


class Play(DirectoryService):
    """The directory and all shards; tests change what they do."""

    def __init__(self) -> None:
        super().__init__(Directory())
        self.commits: list[Commit] = []
        self.refusals: list[ServiceError] = []
        self.commit_gate = asyncio.Event()
        self.commit_gate.set()
        self.decoding: list[Decode] = []
        self.decode_gate = asyncio.Event()
        self.decode_gate.set()
        self.groups: dict[tuple[str, int], list[str]] = {}
        """Of every prefill, by request and epoch: the ranks' names on the data plane."""
        self.grown: list[Grow] = []
        self.short_answers: set[str] = set()
        """Requests that need more pages before they end."""
        self.link_is_cut = False
        """Between prefill shards."""

    async def describe(self, request: Describe) -> Info:
        return Info("shard", 1, "0", "ready")

    async def commit(self, request: Commit) -> Committed:
        self.commits.append(request)
        await self.commit_gate.wait()
        if self.refusals:
            raise self.refusals.pop(0)
        return await super().commit(request)

    async def hold(self, request: Hold) -> AsyncIterator[Held | Filled]:
        yield Held(1)
        yield Filled(0)
        await forever()

    async def join(self, request: Join) -> AsyncIterator[Done]:
        yield Done()
        await forever()

    async def prefill(self, request: Prefill) -> AsyncIterator[Prefilled | Deposited]:
        group = [rank.peers[0].name for rank in request.group]
        self.groups[request.request, request.epoch] = group
        if self.link_is_cut and len(group) > 1:
            raise PeerLost(group[1 - request.rank])
        yield Prefilled(Token(0, 10), (), 0.0, Exchanged({}, 0.0, 0.0, 0.0, 0.0))
        yield Deposited(0)

    async def decode(self, request: Decode) -> AsyncIterator[Short | Decoded]:
        self.decoding.append(request)
        await self.decode_gate.wait()
        if request.request in self.short_answers:
            yield Short()
            await until(lambda: request.request in [grow.request for grow in self.grown])
        yield Decoded(2, "length", 0, 0)

    async def grow(self, request: Grow) -> Done:
        self.grown.append(request)
        return Done()


@asynccontextmanager
async def stage(
    play: Play,
    prefill: int = 1,
    growth_tokens: int = 256,
    followers: Mapping[str, tuple[Follower, ...]] = MappingProxyType({}),
    **scheduler: object,
) -> AsyncIterator[Peer]:
    """A scheduler with prefill shards and one decode shard; yields a connection to it.

    Args:
        followers: the other processes of shards that have several.
    """
    async with AsyncExitStack() as stack:
        actors = Server(play, BUS)
        address = await actors.start("tcp://127.0.0.1:0")
        stack.push_async_callback(actors.close)
        directory = Peer(address, BUS, "kvdir")
        stack.push_async_callback(directory.close)
        settings = Scheduler(**scheduler)  # type: ignore[arg-type]
        kv = Kv(growth_tokens=growth_tokens)
        cluster = Cluster(prefill=prefill, decode=1, bus=BUS, scheduler=settings, kv=kv)
        telemetry = Publisher("tcp://127.0.0.1:9", "scheduler", BUS)
        stack.push_async_callback(asyncio.to_thread, telemetry.close)
        service = SchedulerService(
            cluster, Schemes(CONFIG, 2, SHARING), "tiny", directory, telemetry
        )
        stack.push_async_callback(service.close)
        watching = asyncio.create_task(service.watch_room())
        door = Server([service, service.pins], BUS)
        peer = Peer(await door.start("tcp://127.0.0.1:0"), BUS, "scheduler")
        stack.push_async_callback(door.close)
        stack.callback(watching.cancel)
        stack.push_async_callback(peer.close)
        shards = [(f"prefill-{index}", 0) for index in range(prefill)]
        for name, pages in [*shards, ("decode-0", PAGES)]:
            plane = messages.Peer(f"{name}/1", "tcp://127.0.0.1:9", bytes(16))
            role = name.partition("-")[0]
            led = followers.get(name, ())
            shard = Shard(name, role, 1, address, plane, pages, PAGE if pages else 0, led)  # type: ignore[arg-type]
            registered = await stack.enter_async_context(peer.stream(Register(shard)))
            await anext(registered)
            if pages:
                announce = Announce(shard.id, plane.name, pages, PAGE)
                announced = await stack.enter_async_context(directory.stream(announce))
                await anext(announced)
        while service.waiting_for():
            await asyncio.sleep(0.01)
        yield peer


async def test_the_scheduler_is_ready_when_it_serves_with_fewer_shards() -> None:
    cluster = Cluster(prefill=1, decode=2, bus=BUS)
    telemetry = Publisher("tcp://127.0.0.1:9", "scheduler", BUS)
    directory = Peer("tcp://127.0.0.1:9", BUS, "kvdir")
    service = SchedulerService(cluster, Schemes(CONFIG, 2, SHARING), "tiny", directory, telemetry)
    fleet = service._core.fleet
    try:
        for name, pages in (("prefill-0", 0), ("decode-0", PAGES)):
            assert service.obstacle() == service.waiting_for() != ""
            plane = messages.Peer(f"{name}/1", "tcp://127.0.0.1:9", bytes(16))
            role = name.partition("-")[0]
            shard = Shard(name, role, 1, "tcp://127.0.0.1:9", plane, pages, PAGE if pages else 0)  # type: ignore[arg-type]
            service._core.handle(Joined(shard), 0.0)
        fleet.room = Room({"decode-0": PAGES}, {"decode-0": PAGES})
        assert (service.obstacle(), service.waiting_for()) == ("", "1 of 2 decode shards")
    finally:
        await service.close()
        await directory.close()
        await asyncio.to_thread(telemetry.close)


def submit(name: str, tokens: int = 40, **more: object) -> Submit:
    prompt = struct.pack(f"<{tokens}i", *range(tokens))
    sampling = more.pop("sampling", Sampling(2, 0))
    return Submit(name, prompt, sampling, **more)  # type: ignore[arg-type]


async def finished(peer: Peer, request: Submit) -> Finished:
    async with peer.stream(request) as items:
        async for item in items:
            if isinstance(item, Finished):
                return item
    raise AssertionError("it ended without totals")


async def test_a_directory_that_stays_away_ends_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers is a process that stands still."""
    monkeypatch.setattr(job, "LEASE_S", 0.3)

    class Still(Play):
        async def reserve(self, request: Reserve) -> AsyncIterator[Room]:
            await forever()
            yield Room({}, {})

    async with stage(Still()) as peer:
        with pytest.raises(PeerLost, match=r"the KV directory has not answered for 0\.3 s"):
            await finished(peer, submit("a"))


async def test_decoding_does_not_wait_for_the_directory() -> None:
    play = Play()
    play.commit_gate.clear()
    async with stage(play) as peer:
        asking = asyncio.create_task(finished(peer, submit("a")))
        await until(lambda: play.commits and play.decoding)
        play.commit_gate.set()
        assert (await asking).tokens == 2


async def test_a_directory_that_is_lost_at_the_commit_costs_nothing() -> None:
    play = Play()
    play.refusals = [PeerLost("kvdir"), Invalid("request a has no lease in epoch 0")]
    play.decode_gate.clear()
    async with stage(play) as peer:
        asking = asyncio.create_task(finished(peer, submit("a")))
        await until(lambda: len(play.commits) == 3)
        play.decode_gate.set()
        assert (await asking).tokens == 2
    assert len(play.decoding) == 1


async def test_a_second_request_of_a_name_leaves_the_first_alone() -> None:
    play = Play()
    play.decode_gate.clear()
    async with stage(play) as peer:
        asking = asyncio.create_task(finished(peer, submit("a")))
        await until(lambda: play.decoding)
        with pytest.raises(Invalid, match="running already"):
            await finished(peer, submit("a"))
        fleet = await peer.call(messages.ShowFleet())
        assert [each.request for each in fleet.requests] == ["a"]
        play.decode_gate.set()
        assert (await asking).tokens == 2


@pytest.mark.parametrize(("growth", "most"), [(256, PAGES * PAGE - 40), (0, PAGES * PAGE // 8)])
async def test_an_answer_of_no_stated_length_is_cut_to_what_fits(growth: int, most: int) -> None:
    """The pool has 1,024 tokens, and the model's context many more."""
    play = Play()
    async with stage(play, growth_tokens=growth) as peer:
        long = Sampling(100_000, 0)
        await finished(peer, submit("a", sampling=long, open_ended=True))
        await finished(peer, submit("b", 1000, sampling=long, open_ended=True))
        with pytest.raises(Invalid, match="enlarge"):
            await finished(peer, submit("c", sampling=long))
    assert [each.sampling.max_tokens for each in play.decoding] == [most, 24]


def leased(play: Play) -> dict[str, int]:
    return {lease.request: lease.placements[-1].pages for lease in play._directory.leases().leases}


async def test_an_answer_gets_pages_as_it_grows() -> None:
    play = Play()
    play.short_answers = {"r"}
    async with stage(play, growth_tokens=64) as peer:
        play.decode_gate.clear()
        answer = asyncio.create_task(finished(peer, submit("r", sampling=Sampling(500, 0))))
        await until(lambda: play.decoding)
        assert leased(play) == {"r": 7}, "40 tokens and 64"
        play.decode_gate.set()
        assert (await answer).tokens == 2
        assert [(grow.request, grow.capacity) for grow in play.grown] == [("r", 11 * PAGE)]
        await until(lambda: leased(play) == {})


async def test_who_came_last_gives_its_pages_to_an_answer_that_grows() -> None:
    play = Play()
    play.short_answers = {"a"}
    async with stage(play, growth_tokens=480) as peer:
        play.decode_gate.clear()
        first = asyncio.create_task(finished(peer, submit("a", sampling=Sampling(900, 0))))
        await until(lambda: len(play.decoding) == 1)
        second = submit("b", sampling=Sampling(456, 0), cache_salt="b")
        last = asyncio.create_task(finished(peer, second))
        await until(lambda: len(play.decoding) == 2)
        assert leased(play) == {"a": 33, "b": 31}
        play.decode_gate.set()
        play.short_answers.add("b")
        with pytest.raises(Preempted, match="request b gave its KV up"):
            await last
        assert (await first).tokens == 2
        assert play.grown[0].capacity == 34 * PAGE


async def test_prefill_shards_that_lost_each_other_work_apart() -> None:
    """A link that was cut for good ended every long prompt with 503, after three tries on it."""
    play = Play()
    play.link_is_cut = True
    async with stage(play, 2, prefill_span_tokens=32) as peer:
        for name in ("a", "b"):
            assert (await finished(peer, submit(name, 64))).tokens == 2
    assert [len(group) for group in play.groups.values()] == [2, 1, 1]
