"""Structured concurrency: errors that mean an action, and cancellation that is never lost."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest

from sps2.common.errors import Cancelled, Internal, PeerLost
from sps2.services.tasks import MOST, emitted_by, end, gather_all, root_cause


async def test_the_error_that_says_what_to_do_is_raised() -> None:
    async def fail(error: Exception) -> None:
        raise error

    with pytest.raises(PeerLost):
        await gather_all(fail(Internal("?")), fail(PeerLost("a")))


async def test_a_cancelled_task_ends_even_where_its_parts_fail_at_that_moment() -> None:
    """What the scheduler met when all services were stopped at once: it planned anew, for ever."""
    stopping = asyncio.Event()

    async def part() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise PeerLost("a shard that was stopped too") from None

    async def job() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(part())
                stopping.set()
                await asyncio.Event().wait()
        except BaseExceptionGroup as failures:
            assert isinstance(root_cause(failures), PeerLost)  # noqa: PT017
            await asyncio.Event().wait()  # for shards to run it on

    task = asyncio.create_task(job())
    await stopping.wait()
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await end(task)
    assert task.cancelled()


async def test_items_that_nobody_takes_end_their_job() -> None:
    made: list[int] = []

    async def job(emit: Callable[[int], None]) -> None:
        for number in range(10 * MOST):
            emit(number)
            made.append(number)
            await asyncio.sleep(0)

    async with aclosing(emitted_by(job)) as items:  # type: ignore[type-var]
        assert await anext(items) == 0
        async with asyncio.timeout(60):
            while len(made) < MOST:
                await asyncio.sleep(0)
            for _ in range(10):
                await asyncio.sleep(0)
        assert len(made) <= MOST + 1
        with pytest.raises(Cancelled, match="does not read"):
            async for _ in items:
                pass
