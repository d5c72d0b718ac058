"""A shard of several processes is lost as soon as one of them is, whoever finds that out."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from sps2.common.bus.peer import Peer, Server
from sps2.common.errors import PeerLost
from sps2.common.messages import (
    Decode,
    Decoded,
    Deposited,
    Describe,
    Follower,
    Info,
    Prefill,
    Prefilled,
    ShowFleet,
)
from sps2.common.messages import Peer as Plane

from ...waiting import until
from .test_service import BUS, Play, finished, stage, submit


class Process:
    """A follower on the bus."""

    def __init__(self, shard: str) -> None:
        self.plane = Plane(f"{shard}.1/1", "tcp://127.0.0.1:9", bytes(16))
        self._server = Server(self, BUS)
        self._ending: asyncio.Task[None] | None = None

    async def describe(self, request: Describe) -> Info:
        return Info("shard", 1, "0", "ready")

    async def start(self) -> Follower:
        return Follower(await self._server.start("tcp://127.0.0.1:0"), self.plane)

    async def end(self) -> None:
        self._ending = self._ending or asyncio.create_task(self._server.close())
        await asyncio.shield(self._ending)


class Team(Play):
    """As `Play`; the last prefill shard and the decode shard have a follower each.

    Their leaders stay, as they do for a moment when a follower is killed.
    """

    def __init__(self, prefill_follower: type[Process] = Process) -> None:
        super().__init__()
        self.prefill_follower = prefill_follower("prefill-1")
        self.decode_follower = Process("decode-0")
        self.ends_prefill = self.ends_decode = False
        self.link_is_cut = False

    async def followers(self) -> dict[str, tuple[Follower, ...]]:
        return {
            "prefill-1": (await self.prefill_follower.start(),),
            "decode-0": (await self.decode_follower.start(),),
        }

    async def end(self) -> None:
        await self.prefill_follower.end()
        await self.decode_follower.end()

    async def prefill(self, request: Prefill) -> AsyncIterator[Prefilled | Deposited]:
        """A leader names its follower as the bus does, another shard as the data plane does."""
        group = [rank.peers[0].name for rank in request.group]
        follower = self.prefill_follower.plane.name
        is_there = not self.ends_prefill and not (self.link_is_cut and len(group) > 1)
        if "prefill-1/1" in group and not is_there:
            self.groups[request.request, request.epoch] = group
            if self.ends_prefill:
                await self.prefill_follower.end()
            raise PeerLost(follower if len(group) > 1 else "prefill-1.1")
        async for item in super().prefill(request):
            yield item

    async def decode(self, request: Decode) -> AsyncIterator[Decoded]:  # type: ignore[override]
        self.decoding.append(request)
        if self.ends_decode:
            await self.decode_follower.end()
            raise PeerLost("another process of this shard")
        yield Decoded(2, "length", 0, 0)


async def states(peer: Peer) -> dict[str, str]:
    return {shard.id: shard.state for shard in (await peer.call(ShowFleet())).shards}


async def test_a_request_is_planned_at_once_without_a_shard_that_lost_a_follower() -> None:
    """It went to that shard again at once, twice, and failed."""
    play = Team()
    play.ends_prefill = True
    async with stage(play, 2, followers=await play.followers(), prefill_span_tokens=32) as peer:
        assert (await finished(peer, submit("a", 64))).tokens == 2
        assert [*play.groups.values()] == [["prefill-0/1", "prefill-1/1"], ["prefill-0/1"]]
        assert (await states(peer))["prefill-1"] == "lost"
    await play.end()


async def test_an_answer_that_lost_a_follower_finds_its_shard_gone() -> None:
    """Who resumes it is not sent to that shard again."""
    play = Team()
    play.ends_decode = True
    async with stage(play, 1, followers=await play.followers()) as peer:
        with pytest.raises(PeerLost, match="another process"):
            await finished(peer, submit("a"))
        assert (await states(peer))["decode-0"] == "lost"
    assert len(play.decoding) == 1
    await play.end()


async def test_a_shard_stays_whose_follower_only_lost_a_link() -> None:
    play = Team()
    play.link_is_cut = True
    async with stage(play, 2, followers=await play.followers(), prefill_span_tokens=32) as peer:
        assert (await finished(peer, submit("a", 64))).tokens == 2
        assert [len(group) for group in play.groups.values()] == [2, 1]
        assert "lost" not in (await states(peer)).values()
    await play.end()


async def test_a_follower_that_is_slow_to_answer_counts_as_there() -> None:
    """It has other things to do; the request need not wait for it for long."""

    asked = 0

    class Slow(Process):
        async def describe(self, request: Describe) -> Info:
            nonlocal asked
            asked += 1
            if asked > 1:
                await asyncio.sleep(60)
            return await super().describe(request)

    play = Team(Slow)
    play.link_is_cut = True
    async with stage(play, 2, followers=await play.followers(), prefill_span_tokens=32) as peer:
        assert (await finished(peer, submit("a", 64))).tokens == 2
        await until(lambda: asked == 2)
        assert "lost" not in (await states(peer)).values()
    await play.end()
