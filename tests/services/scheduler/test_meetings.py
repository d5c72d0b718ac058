"""The stages of a shard meet at the scheduler, in any order."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from sps2.common.errors import Invalid
from sps2.common.messages import Follower, Meet, Met, Peer
from sps2.services.scheduler.meetings import Meetings


def stage(rank: int, number: int = 0) -> Meet:
    follower = Follower(f"tcp://host:{rank}", Peer(f"s.{rank}", "", b"")) if rank else None
    return Meet("mixed-0", rank, 3, "addresses", number, follower)


async def met(stream: AsyncGenerator[Met, None]) -> Met:
    async with aclosing(stream):
        return await anext(stream)


async def test_all_are_answered_once_all_are_there() -> None:
    meetings = Meetings()
    for _ in range(2):  # a shard that starts again meets again
        tasks = [asyncio.create_task(met(meetings.meet(stage(rank, 9 - rank)))) for rank in (2, 0)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in tasks)
        whole = await met(meetings.meet(stage(1, 8)))
        assert await asyncio.gather(*tasks) == [whole, whole]
        assert whole.numbers == (9, 8, 7)
        assert [each.address for each in whole.followers] == ["tcp://host:1", "tcp://host:2"]


async def test_a_stage_that_left_is_not_there() -> None:
    meetings = Meetings()
    left, here = (asyncio.create_task(met(meetings.meet(stage(rank)))) for rank in (0, 1))
    await asyncio.sleep(0.01)
    left.cancel()
    await asyncio.wait({left})
    last = asyncio.create_task(met(meetings.meet(stage(2))))
    await asyncio.sleep(0.01)
    assert not last.done()
    await met(meetings.meet(stage(0)))
    await asyncio.gather(here, last)


async def test_a_stage_beyond_the_last_is_refused() -> None:
    with pytest.raises(Invalid, match="no stage 3 of 3"):
        await met(Meetings().meet(stage(3)))
