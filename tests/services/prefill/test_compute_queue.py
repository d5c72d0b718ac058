"""The most urgent prefill computes first, others are held back, and nobody starves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.common.messages.prefill import LEAST_SHARE
from sps2.common.model.attend import Run
from sps2.services.prefill.compute_queue import ABSENT_S, Compute

from .test_passes import at_once


class Virtual:
    """A thread and a clock of virtual time: each piece of work is its own number of seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.order: list[str] = []
        self.spent_s: dict[str, float] = {}
        self._ends: tuple[float, asyncio.Future[object]] | None = None

    def __call__(self, work: Callable[[], tuple[str, float]]) -> asyncio.Future[object]:
        name, seconds = work()
        self.order.append(name)
        self.spent_s[name] = self.spent_s.get(name, 0.0) + seconds
        ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._ends = self.now_s + seconds, ended
        return ended

    def clock(self) -> float:
        return self.now_s

    async def run(self, compute: Compute, until_s: float, step_s: float = 0.01) -> None:
        while self.now_s < until_s:
            for _ in range(4):
                await asyncio.sleep(0)
            if self._ends is not None and self._ends[0] <= self.now_s + step_s:
                self.now_s, ended = self._ends
                self._ends = None
                ended.set_result(None)
                continue
            self.now_s += step_s
            compute.look()


@asynccontextmanager
async def several(
    thread: Virtual, **urgencies: float
) -> AsyncIterator[tuple[Compute, dict[str, Run]]]:
    compute = Compute(thread, thread.clock)
    with ExitStack() as stack:
        yield (
            compute,
            {
                name: stack.enter_context(compute.prefill(lambda value=value: value))  # type: ignore[misc]
                for name, value in urgencies.items()
            },
        )


async def pieces(run: Run, name: str, seconds: float, count: int, apart_s: float = 0.0) -> None:
    for _ in range(count):
        await run(lambda: (name, seconds))
        if apart_s:
            await asyncio.sleep(0)


async def test_the_most_urgent_goes_first_and_holds_the_others_back() -> None:
    thread = Virtual()
    async with several(thread, long=0.0) as (compute, runs):
        long = asyncio.create_task(pieces(runs["long"], "long", 0.1, 5))
        await thread.run(compute, 0.05)
        with compute.prefill(lambda: 1.0) as run:
            short = asyncio.create_task(pieces(run, "short", 0.01, 20))
            await thread.run(compute, 0.31)
            assert short.done()
            assert thread.order == ["long", *["short"] * 20], "no long piece between short ones"
        await thread.run(compute, 2.0)
        assert long.done()
        assert compute.counters()["held_back_s"] == pytest.approx(0.2, abs=0.03)


async def test_equals_take_turns() -> None:
    thread = Virtual()
    async with several(thread, one=0.0, other=0.0) as (compute, runs):
        both = [asyncio.create_task(pieces(runs[n], n, 0.1, 4)) for n in ("one", "other")]
        await thread.run(compute, 1.0)
        assert all(task.done() for task in both)
        assert thread.order == ["one", "other"] * 4


async def test_those_held_back_get_their_share() -> None:
    thread = Virtual()
    async with several(thread, long=0.0, urgent=1.0) as (compute, runs):
        tasks = [
            asyncio.create_task(pieces(runs["urgent"], "urgent", 0.02, 10_000)),
            asyncio.create_task(pieces(runs["long"], "long", 0.1, 1000)),
        ]
        await thread.run(compute, 40.0)
        assert thread.spent_s["long"] / 40 == pytest.approx(LEAST_SHARE, abs=0.02)
        assert compute.counters()["held_back_s"] == pytest.approx(40, abs=0.5)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_one_that_waits_for_others_holds_nobody_back_for_long() -> None:
    """Such as one whose keys come from a shard that is lost."""
    thread = Virtual()
    async with several(thread, long=0.0, stuck=1.0) as (compute, runs):
        await runs_one(thread, compute, runs["stuck"])
        long = asyncio.create_task(pieces(runs["long"], "long", 0.1, 10))
        await thread.run(compute, ABSENT_S + 1.3)
        assert long.done()


async def runs_one(thread: Virtual, compute: Compute, run: Run) -> None:
    task = asyncio.create_task(pieces(run, "stuck", 0.01, 1))
    await thread.run(compute, 0.02)
    await task


async def test_a_piece_that_nobody_awaits_is_left_out_and_a_failure_goes_to_its_caller() -> None:
    thread = Virtual()

    compute = Compute(at_once, thread.clock)
    with compute.prefill(lambda: 0.0) as run:
        with pytest.raises(ZeroDivisionError):
            await run(lambda: 1 / 0)
        assert await run(lambda: 5) == 5

    async with several(thread, one=0.0) as (compute, runs):
        first, second, third = (
            asyncio.create_task(pieces(runs["one"], name, 0.1, 1)) for name in "abc"
        )
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second.cancel()
        await thread.run(compute, 1.0)
        assert thread.order == ["a", "c"]
        await first
        await third


async def test_a_change_of_urgency_counts_from_the_next_piece_on() -> None:
    thread = Virtual()
    compute = Compute(thread, thread.clock)
    urgency = {"a": 1.0, "b": 0.0}
    with (
        compute.prefill(lambda: urgency["a"]) as run_a,
        compute.prefill(lambda: urgency["b"]) as run_b,
    ):
        a = asyncio.create_task(pieces(run_a, "a", 0.1, 4))
        b = asyncio.create_task(pieces(run_b, "b", 0.1, 4))
        await thread.run(compute, 0.15)
        urgency["b"] = 2.0
        compute.look()
        await thread.run(compute, 2.0)
        assert thread.order == ["a", "a", *"bbbb", "a", "a"]
        await a
        await b


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0.01, 0.05, 0.2]), st.integers(1, 8)),
        min_size=1,
        max_size=6,
    )
)
@settings(deadline=None, max_examples=60)
def test_all_end_whatever_their_urgencies(prefills: list[tuple[int, float, int]]) -> None:
    async def run() -> None:
        thread = Virtual()
        urgencies = {str(number): float(each[0]) for number, each in enumerate(prefills)}
        async with several(thread, **urgencies) as (compute, runs):
            tasks = [
                asyncio.create_task(pieces(runs[str(number)], str(number), seconds, count))
                for number, (_, seconds, count) in enumerate(prefills)
            ]
            busy_s = sum(seconds * count for _, seconds, count in prefills)
            await thread.run(compute, busy_s / LEAST_SHARE + len(prefills) * ABSENT_S)
            assert all(task.done() for task in tasks)

    asyncio.run(run())
