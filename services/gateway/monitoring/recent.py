"""Quantiles of recent measurements, exact where a histogram's buckets are coarse."""

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 60.0
MOST = 2048
"""Values kept; beyond that the window is shorter."""


class Recent:
    """The values of the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._values: deque[tuple[float, float]] = deque(maxlen=MOST)

    def add(self, value: float) -> None:
        self._values.append((self._clock(), value))

    def quantiles(self, name: str) -> dict[str, float]:
        """`NAME_p50_s` and `NAME_p99_s`, by nearest rank; nothing if nothing was measured."""
        oldest_s = self._clock() - WINDOW_S
        while self._values and self._values[0][0] < oldest_s:
            self._values.popleft()
        ranked = sorted(value for _, value in self._values)
        if not ranked:
            return {}
        return {
            f"{name}_p{percent}_s": ranked[-(-percent * len(ranked) // 100) - 1]
            for percent in (50, 99)
        }
