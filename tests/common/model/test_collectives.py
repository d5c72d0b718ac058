"""Shares of a model in threads, joined by gloo: sums, gathers, and stopping together."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch
import torch.distributed as dist

from sps2.common.errors import Cancelled
from sps2.common.model.collectives import Collectives, Turn
from sps2.common.model.share import Share

Result = TypeVar("Result")
SHAPE = (3, 4)


def in_threads(
    size: int, work: Callable[[Collectives], Awaitable[Result]], lag: int = 0
) -> list[Result]:
    """What `work` returns in each of `size` processes, which are threads with loops here.

    Args:
        lag: sums after which stop flags are read, as on GPUs.
    """
    store = dist.HashStore()

    def run(rank: int) -> Result:
        collectives = Collectives(Share(rank, size), store)
        collectives.lag = lag

        async def all_of_it() -> Result:
            async with asyncio.timeout(60):
                return await work(collectives)

        try:
            return asyncio.run(all_of_it())
        finally:
            collectives.close()

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))


def ones(collectives: Collectives) -> torch.Tensor:
    return torch.full(SHAPE, float(collectives.share.rank + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_and_gathers(dtype: torch.dtype) -> None:
    async def work(collectives: Collectives) -> tuple[torch.Tensor, torch.Tensor, int]:
        mine = ones(collectives).to(dtype)
        with collectives.turn(1, 1, SHAPE, dtype) as turn:
            total = await turn.sum(mine.clone())
            return total, await turn.gather(mine), collectives.share.rank

    for total, joined, rank in in_threads(3, work):
        assert total.dtype == dtype
        assert torch.equal(total, torch.full(SHAPE, 6.0, dtype=dtype))
        if rank == 0:
            assert joined[0].tolist() == [1] * 4 + [2] * 4 + [3] * 4


def test_the_least_number() -> None:
    async def work(collectives: Collectives) -> int:
        return collectives.least(7 - collectives.share.rank)

    assert in_threads(2, work) == [6, 6]


@pytest.mark.parametrize("made", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("who", [0, 1])
def test_one_that_stops_stops_all_and_the_next_turn_is_in_step(made: int, who: int) -> None:
    """`who` makes that many of two sums and two gathers; the others try to make all."""

    async def some(turn: Turn, x: torch.Tensor, count: int) -> int:
        for index in range(count):
            try:
                await (turn.sum(x.clone()) if index < 2 else turn.gather(x))
            except Cancelled:
                return index
        return count

    async def work(collectives: Collectives) -> tuple[int, torch.Tensor]:
        x = ones(collectives)
        first = collectives.turn(2, 2, SHAPE, x.dtype)
        second = collectives.turn(1, 0, SHAPE, x.dtype)
        with first:
            came = await some(first, x, made if collectives.share.rank == who else 4)
        with second:
            return came, await second.sum(x)

    for came, total in in_threads(2, work):
        assert came == made
        assert torch.equal(total, torch.full(SHAPE, 3.0))


@pytest.mark.parametrize("lag", [1, 3, 9])
@pytest.mark.parametrize("gathers", [0, 1])
@pytest.mark.parametrize("made", [0, 1, 4, 5])
def test_flags_that_are_read_later_stop_all_before_the_last_result(
    lag: int, gathers: int, made: int
) -> None:
    """One makes `made` of five sums; the others stop `lag` sums later, or at the turn's end."""

    async def work(collectives: Collectives) -> tuple[int, torch.Tensor]:
        x, count = ones(collectives), 0
        first = collectives.turn(5, gathers, SHAPE, x.dtype)
        second = collectives.turn(1, 0, SHAPE, x.dtype)
        with first:
            try:
                for _ in range(made if collectives.share.rank == 1 else 5):
                    await first.sum(x.clone())
                    count += 1
                if collectives.share.rank != 1 and gathers:
                    await first.gather(x)
                    count += 1
            except Cancelled:
                pass
        with second:
            return count, await second.sum(x)

    (came, total), (_, other) = in_threads(2, work, lag)
    assert torch.equal(total, torch.full(SHAPE, 3.0))
    assert torch.equal(other, total)
    if made < 5:
        assert came == min(made + lag, 5 if gathers else 4)
    else:  # nothing was stopped but the gather, if there is one
        assert came == 5


@pytest.mark.parametrize("lag", [0, 2])
def test_both_may_stop_at_different_places_and_while_they_wait(lag: int) -> None:
    async def work(collectives: Collectives) -> torch.Tensor:
        x = ones(collectives)
        for _ in range(50):
            turn = collectives.turn(5, 1, SHAPE, x.dtype)
            waiting = asyncio.create_task(_all(turn, x))
            for _ in range(collectives.share.rank * 3):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
            turn.stop()
        with collectives.turn(1, 0, SHAPE, x.dtype) as last:
            return await last.sum(x)

    for total in in_threads(2, work, lag):
        assert torch.equal(total, torch.full(SHAPE, 3.0))


async def _all(turn: Turn, x: torch.Tensor) -> None:
    for _ in range(5):
        await turn.sum(x.clone())
    await turn.gather(x)


def test_turns_begun_out_of_time_keep_their_order() -> None:
    async def work(collectives: Collectives) -> tuple[float, float]:
        x = ones(collectives)
        first, second = (collectives.turn(1, 0, SHAPE, x.dtype) for _ in range(2))
        later = asyncio.create_task(second.sum(x * 10))
        await asyncio.sleep(0)
        total = await first.sum(x)
        return float(total[0, 0]), float((await later)[0, 0])

    assert in_threads(2, work) == [(3.0, 30.0)] * 2
