"""When a rank computed and when it communicated: what transfers cost, and how much was hidden."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

Phase = Literal["in", "compute", "out"]


class Entry(NamedTuple):
    """Seconds are those of `time.monotonic`. `layer` is -1 for arithmetic outside attention."""

    phase: Phase
    layer: int
    start_s: float
    stop_s: float


class Timeline:
    """Filled by the rank's threads while it runs."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    @contextmanager
    def during(self, phase: Phase, layer: int) -> Iterator[None]:
        """Record the time that the block takes."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.entries.append(Entry(phase, layer, start, time.monotonic()))

    def compute_s(self) -> float:
        return _length(self._stretches("compute"))

    def attention_s(self) -> float:
        return sum(
            entry.stop_s - entry.start_s
            for entry in self.entries
            if entry.phase == "compute" and entry.layer >= 0
        )

    def exchange_s(self) -> float:
        """How long at least one transfer was awaited or under way."""
        return _length(self._stretches("in", "out"))

    def hidden_s(self) -> float:
        """How much of `exchange_s` something was computed in."""
        together = _length(self._stretches("compute", "in", "out"))
        return self.compute_s() + self.exchange_s() - together

    def _stretches(self, *phases: Phase) -> list[tuple[float, float]]:
        return _union((e.start_s, e.stop_s) for e in self.entries if e.phase in phases)


def _union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for start, stop in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((start, stop))
    return found


def _length(intervals: list[tuple[float, float]]) -> float:
    return sum(stop - start for start, stop in intervals)
