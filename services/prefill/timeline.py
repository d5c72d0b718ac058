"""When a rank computed and when it exchanged data: how long transfers took, how much was hidden."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from sps2.common.device import HOST, Device, Mark
from sps2.common.tracing import union

Phase = Literal["in", "compute", "out"]


class Entry(NamedTuple):
    """One period, in seconds of `time.monotonic`; `layer` is -1 outside attention."""

    phase: Phase
    layer: int
    start_s: float
    stop_s: float


class Timeline:
    """What a rank did when. Its threads record it while it runs; read it once all is computed.

    Args:
        device: the device that computes, whose clock times arithmetic.
    """

    def __init__(self, device: Device = HOST) -> None:
        self._device = device
        self._noted: list[tuple[Phase, int, Mark, Mark]] = []

    @contextmanager
    def during(self, phase: Phase, layer: int) -> Iterator[None]:
        """Record the time that the block takes."""
        mark = self._device.mark if phase == "compute" else HOST.mark
        start = mark()
        try:
            yield
        finally:
            self.add(phase, layer, start, mark())

    def add(self, phase: Phase, layer: int, start: Mark, stop: Mark) -> None:
        self._noted.append((phase, layer, start, stop))

    @property
    def entries(self) -> list[Entry]:
        """All periods, in the order in which they ended."""
        return [
            Entry(phase, layer, start(), stop()) for phase, layer, start, stop in list(self._noted)
        ]

    def compute_s(self) -> float:
        return _length(self._intervals("compute"))

    def attention_s(self) -> float:
        return sum(
            entry.stop_s - entry.start_s
            for entry in self.entries
            if entry.phase == "compute" and entry.layer >= 0
        )

    def exchange_s(self) -> float:
        """Seconds in which at least one transfer was awaited or under way."""
        return _length(self._intervals("in", "out"))

    def hidden_s(self) -> float:
        """Seconds of `exchange_s` in which something was computed too."""
        together = _length(self._intervals("compute", "in", "out"))
        return self.compute_s() + self.exchange_s() - together

    def _intervals(self, *phases: Phase) -> list[tuple[float, float]]:
        return union([(e.start_s, e.stop_s) for e in self.entries if e.phase in phases])


def _length(intervals: list[tuple[float, float]]) -> float:
    return sum(stop - start for start, stop in intervals)
