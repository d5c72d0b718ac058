"""The last heartbeats of one process, and the rates that follow from them."""

from collections import deque

from sps2.common.bus.telemetry import Heartbeat

KEPT = 6
"""Heartbeats that are kept; rates are over the time between the first and the last."""


class Pulse:
    """The heartbeats of a process. After a restart they start over."""

    def __init__(self, heartbeat: Heartbeat, now_s: float) -> None:
        self._heartbeats = deque([heartbeat], KEPT)
        self.heard_s = now_s
        """When the last heartbeat came, on the watcher's clock."""

    @property
    def last(self) -> Heartbeat:
        return self._heartbeats[-1]

    @property
    def heartbeats(self) -> int:
        """How many heartbeats since its start are kept."""
        return len(self._heartbeats)

    def hear(self, heartbeat: Heartbeat, now_s: float) -> None:
        """Handle a heartbeat. `now_s` is on the watcher's clock, not on the service's."""
        if heartbeat.pid != self.last.pid or heartbeat.at_s <= self.last.at_s:
            self._heartbeats.clear()
        self._heartbeats.append(heartbeat)
        self.heard_s = now_s

    def gauge(self, name: str) -> float | None:
        return self.last.counters.get(name)

    def count(self, name: str) -> int | None:
        value = self.gauge(name)
        return None if value is None else int(value)

    def rate(self, *names: str) -> float | None:
        """The summed rate of counters, per second; None before the second heartbeat."""
        changes = [change for name in names if (change := self.change(name)) is not None]
        return sum(changes) / self._elapsed_s() if changes else None

    def change(self, name: str) -> float | None:
        """The increase of a counter; one that is new began at 0."""
        last = self.gauge(name)
        if last is None or len(self._heartbeats) < 2:
            return None
        return last - self._heartbeats[0].counters.get(name, 0.0)

    def flow(self, way: str) -> float | None:
        """Bytes per second over the data plane; `way` is "sent" or "received"."""
        if len(self._heartbeats) < 2:
            return None
        return self.rate(*(name for name in self.last.counters if name.endswith(f"_{way}"))) or 0.0

    def links(self) -> dict[str, tuple[int, float | None]]:
        """Bytes sent in total and per second, by target."""
        last = self.last.sent_bytes()
        if len(self._heartbeats) < 2:
            return {target: (sent, None) for target, sent in last.items()}
        first = self._heartbeats[0].sent_bytes()
        return {
            target: (sent, max(0.0, sent - first.get(target, 0)) / self._elapsed_s())
            for target, sent in last.items()
        }

    def _elapsed_s(self) -> float:
        return self.last.at_s - self._heartbeats[0].at_s
