"""What the transport soak measures with: running time, gaps in progress, bytes on their way."""

import asyncio
from time import monotonic, process_time

KILL_SHADOW_S = 3.0
"""Gaps this soon after a kill are reported apart: a process is starting on the same cores."""

TICK_S = 0.02


class Clock:
    """Time in which this process could run: what the scheduler gave to others does not count."""

    def __init__(self) -> None:
        self.now = self.loop_lag = 0.0
        self.last_kill = -KILL_SHADOW_S

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            started, used = monotonic(), process_time()
            await asyncio.sleep(TICK_S)
            elapsed, used = monotonic() - started, process_time() - used
            self.now += min(elapsed, 2 * TICK_S + used)
            self.loop_lag = max(self.loop_lag, min(elapsed, used) - TICK_S)


class Gaps:
    """The longest time without progress, apart from the time after kills."""

    def __init__(self, clock: Clock) -> None:
        self.longest = self.longest_after_kill = 0.0
        self._clock = clock
        self._last = clock.now

    def progress(self) -> None:
        now, kill = self._clock.now, self._clock.last_kill
        if self._last < kill + KILL_SHADOW_S and now > kill:
            self.longest_after_kill = max(self.longest_after_kill, now - self._last)
        else:
            self.longest = max(self.longest, now - self._last)
        self._last = now

    def worst(self, *, running: bool) -> float:
        """The longest, counting the one that is not over yet."""
        after_kill = self._clock.last_kill + KILL_SHADOW_S
        open_gap = self._clock.now - max(self._last, after_kill)
        return max(self.longest, open_gap) if running else self.longest

    def restart(self) -> None:
        """What went before does not count."""
        self._last = self._clock.now


class Budget:
    """Bytes that may be on their way; waiters are served in their order."""

    def __init__(self, nbytes: int) -> None:
        self._limit = nbytes
        self._used = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    async def take(self, nbytes: int) -> None:
        async with self._turn:
            while self._used and self._used + nbytes > self._limit:
                self._freed.clear()
                await self._freed.wait()
            self._used += nbytes

    def free(self, nbytes: int) -> None:
        self._used -= nbytes
        self._freed.set()


class Stream:
    """What one peer has not yet acknowledged on one stream."""

    def __init__(self, clock: Clock, budget: Budget) -> None:
        self.unacknowledged: dict[int, int] = {}
        self.gaps = Gaps(clock)
        self._budget = budget

    def acknowledge(self, number: int) -> None:
        for sent in [sent for sent in self.unacknowledged if sent <= number]:
            self._budget.free(self.unacknowledged.pop(sent))

    def give_up(self, number: int) -> None:
        """Frame `number` will not be acknowledged."""
        self._budget.free(self.unacknowledged.pop(number, 0))
