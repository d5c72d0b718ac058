"""The metrics of every process of the cluster, from the last heartbeats that the gateway got."""

import time
from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from sps2.common.bus.telemetry import Event, Heartbeat, Subscriber, role_of, shard_of
from sps2.common.config import Bus
from sps2.common.messages import Role
from sps2.services.gateway.monitoring.shard_metrics import FAMILIES, Family, values

Metric = CounterMetricFamily | GaugeMetricFamily

PROCESS = ("role", "shard", "rank")
"""Labels of every metric of a process: the service or the shard's role, the shard (empty for other
services), and which process of the shard it is."""
LINKS = Family(
    "sps2_link_sent_bytes",
    "counter",
    "Bytes that a shard sent to another, by `peer`, headers included",
    {"": {"peer": ""}},
)
ROLES = get_args(Role)


class Federation(Collector):
    """The metrics of all processes with recent heartbeats; a silent process is left out.

    Args:
        clock: seconds, to detect missed heartbeats.
    """

    def __init__(self, bus: Bus, clock: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._silent_s = bus.heartbeat_s * bus.missed_heartbeats
        self._clock = clock
        self._heartbeats: dict[str, tuple[float, Heartbeat]] = {}

    def hear(self, event: Event) -> None:
        """Handle an event from the telemetry bus."""
        if isinstance(event, Heartbeat):
            self._heartbeats = self._heard() | {event.service: (self._clock(), event)}

    async def listen(self, address: str) -> None:
        """Handle the events of the telemetry bus at `address` until cancelled."""
        async with Subscriber(address, self._bus) as events:
            async for event in events:
                self.hear(event)

    def describe(self) -> Iterator[Metric]:
        """All metrics, without values."""
        for family in (*FAMILIES, LINKS):
            yield _metric(family)

    def collect(self) -> Iterator[Metric]:
        """All metrics, from the last heartbeats; may be called from any thread."""
        processes = [
            (process(name), heartbeat, values(heartbeat))
            for name, (_, heartbeat) in self._heard().items()
        ]
        for family in FAMILIES:
            metric = _metric(family)
            for labels, _, found in processes:
                for counter, more in family.series.items():
                    if (value := found.get(counter)) is not None:
                        metric.add_metric([*labels, *more.values()], family.shown(value))
            yield metric
        metric = _metric(LINKS)
        for labels, heartbeat, _ in processes:
            for peer, sent in heartbeat.sent_bytes().items():
                metric.add_metric([*labels, peer], sent)
        yield metric

    def _heard(self) -> dict[str, tuple[float, Heartbeat]]:
        """The processes that are not silent. The table itself is replaced, never changed."""
        oldest_s = self._clock() - self._silent_s
        return {name: each for name, each in self._heartbeats.items() if each[0] >= oldest_s}


def process(service: str) -> tuple[str, str, str]:
    """The values of the labels in `PROCESS`."""
    role = role_of(service)
    if role not in ROLES:
        return role, "", "0"
    return role, shard_of(service), service.partition(".")[2] or "0"


def _metric(family: Family) -> Metric:
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    return kind(family.name, family.text, labels=[*PROCESS, *family.labels])
