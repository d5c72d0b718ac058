"""A loop stays awake after a question, and sleeps soon after the last; it leaves what is wanted."""

import asyncio

import pytest

from sps2.services.decode import holder_spin
from sps2.services.decode.holder_spin import REST_S, SPIN_S, HolderSpin


class Clock:
    """Advances by itself each time it is read; `sched_yield` takes `yield_s`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.yield_s = 0.0
        self.turns = 0

    def monotonic(self) -> float:
        self.now += 1e-5
        return self.now

    def sched_yield(self) -> None:
        self.turns += 1
        self.now += self.yield_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(holder_spin, "time", made)
    monkeypatch.setattr(holder_spin, "os", made)
    return made


async def settle() -> None:
    for _ in range(round(SPIN_S / 1e-5)):
        await asyncio.sleep(0)


async def test_a_loop_lingers_for_a_moment_only(clock: Clock) -> None:
    waiting = HolderSpin()
    waiting.more()
    waiting.more()
    await settle()
    turns = clock.turns
    assert 0.4 * SPIN_S < turns * 2e-5 <= SPIN_S, "one turn at a time, for as long"
    await settle()
    assert clock.turns == turns

    waiting.more()
    await settle()
    assert clock.turns > turns


async def test_a_processor_that_others_want_is_left_to_them(clock: Clock) -> None:
    clock.yield_s = 1e-3
    waiting = HolderSpin()
    for _ in range(5):
        waiting.more()
        await settle()
    assert clock.turns == 1

    clock.now += REST_S
    waiting.more()
    await settle()
    assert clock.turns == 2
