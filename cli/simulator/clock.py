"""Virtual time."""

from collections.abc import Callable
from heapq import heappop, heappush


class Timer:
    """A call at a time; see `Clock.call_at`."""

    __slots__ = ("at_s", "call")

    def __init__(self, at_s: float, call: Callable[[], None]) -> None:
        self.at_s = at_s
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Clock:
    """Makes calls in the order of their times; calls of one time in the order they were made."""

    def __init__(self) -> None:
        self.now_s = 0.0
        """Seconds since the start."""
        self._number = 0
        self._timers: list[tuple[float, int, Timer]] = []

    def call_at(self, at_s: float, call: Callable[[], None]) -> Timer:
        """Have something called at a time; one that has passed means now."""
        timer = Timer(max(at_s, self.now_s), call)
        self._number += 1
        heappush(self._timers, (timer.at_s, self._number, timer))
        return timer

    def call_soon(self, call: Callable[[], None]) -> Timer:
        """Have something called at the current time, behind what is due already."""
        return self.call_at(self.now_s, call)

    def step(self) -> bool:
        """Make the next call; False if none is left."""
        while self._timers:
            at_s, _, timer = heappop(self._timers)
            if timer.call is not None:
                self.now_s = at_s
                timer.call()
                return True
        return False
