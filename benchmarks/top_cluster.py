"""A cluster that is nothing but its telemetry: what many shards under load tell, for `top.py`."""

import asyncio
import math
import time
from itertools import count

from sps2.common.bus.peer import Server
from sps2.common.bus.telemetry import Event, Heartbeat, Hub, Publisher, RequestEvent
from sps2.common.config import Cluster
from sps2.common.messages import (
    ClusterStatus,
    Link,
    RequestStatus,
    Role,
    ServiceStatus,
    ShardStatus,
    ShowCluster,
)

ROLES: tuple[Role, ...] = ("prefill", "decode")
STEP_S = 0.25
"""Between two events of a request in prefill."""
PREFILL_S, DECODE_S = 3.0, 6.0
PAGES = 4096


class Actors:
    """Heartbeats every second of all services, and `running` requests that come and go.

    Args:
        cluster: says how many shards there are, and where the bus and the gateway are.
    """

    def __init__(self, cluster: Cluster, running: int) -> None:
        self._cluster = cluster
        self._running = running
        self._since_s = time.monotonic()
        self._names = count()
        self._requests: dict[str, float] = {}
        self._shards = [
            (f"{role}-{index}", role) for role in ROLES for index in range(cluster.shards_of(role))
        ]

    async def run(self) -> None:
        """Until cancelled."""
        cluster = self._cluster
        hub = Hub(cluster.publish_address, cluster.subscribe_address, cluster.bus)
        await hub.start()
        publisher = Publisher(cluster.publish_address, "actors", cluster.bus)
        server = Server([self], cluster.bus)
        await server.start(cluster.gateway_address)
        try:
            for step in count():
                if step % round(cluster.bus.heartbeat_s / STEP_S) == 0:
                    for heartbeat in self._heartbeats():
                        publisher.publish(heartbeat)
                for event in self._events():
                    publisher.publish(event)
                await asyncio.sleep(STEP_S)
        finally:
            await server.close()
            publisher.close()
            await hub.close()

    async def show_cluster(self, request: ShowCluster) -> ClusterStatus:
        services = ["gateway", "scheduler", "kvdir", *(name for name, _ in self._shards)]
        return ClusterStatus(
            "actors",
            "0",
            True,
            "",
            tuple(ServiceStatus(name, "tcp://127.0.0.1:1", "ready", 1) for name in services),
            tuple(ShardStatus(name, role, "ready", 1) for name, role in self._shards),
            tuple(
                RequestStatus(name, "decode", 4000, self._age_s() - since_s, 0)
                for name, since_s in self._requests.items()
            ),
            (),
            0,
        )

    def _age_s(self) -> float:
        return time.monotonic() - self._since_s

    def _heartbeats(self) -> list[Heartbeat]:
        age_s = self._age_s()
        told = {
            "gateway": {
                "sps2_requests_total": age_s * 3,
                "sps2_generation_tokens_total": age_s * 200,
                "ttft_p50_s": 0.4,
                "ttft_p99_s": 1.9,
                "tbt_p50_s": 0.012,
                "tbt_p99_s": 0.04,
            },
            "scheduler": {"requests_waiting": 1.0, "requests_running": float(self._running)},
            "kvdir": {"kv_cached_pages": 100.0},
        }
        others = [
            Heartbeat(name, 1, time.time(), 1 << 27, counters, "ready")
            for name, counters in told.items()
        ]
        return others + [self._heartbeat(index, *shard) for index, shard in enumerate(self._shards)]

    def _heartbeat(self, index: int, shard: str, role: Role) -> Heartbeat:
        age_s = self._age_s()
        targets = [name for name, _ in self._shards if name != shard]
        links = tuple(Link(shard, name, int(age_s * 3e6), 100) for name in targets)
        moved = dict.fromkeys(("kv_sent", "kv_received", "q_sent", "q_received"), age_s * 4e6)
        counters = {
            "busy_s": age_s * (0.5 + 0.4 * math.sin(index)),
            "exchange_s": age_s / 2,
            "hidden_s": age_s / 3,
            **moved,
        }
        if role == "prefill":
            counters |= {"prefill_tokens": age_s * 800, "prefilling": 1.0}
            return Heartbeat(shard, 1, time.time(), 1 << 29, counters, "ready", "", links)
        used = 1500 + 1000 * math.sin(age_s / 20 + index)
        counters |= {"kv_pages": PAGES, "kv_pages_free": PAGES - used, "kv_pages_idle": 500.0}
        counters |= {"owned": 2.0, "held": 5.0}
        tokens = {name: int(30 * (age_s - since_s)) for name, since_s in self._requests.items()}
        return Heartbeat(shard, 1, time.time(), 1 << 29, counters, "ready", "", links, tokens)

    def _events(self) -> list[Event]:
        age_s = self._age_s()
        found: list[Event] = []
        for name, since_s in list(self._requests.items()):
            so_far_s = age_s - since_s
            if so_far_s < PREFILL_S:
                processed = 4000 * so_far_s / PREFILL_S
                found.append(RequestEvent(name, "prefill", 0.0, {"processed": processed}))
            elif so_far_s < PREFILL_S + STEP_S:
                found.append(RequestEvent(name, "decode", 0.0))
            elif so_far_s > PREFILL_S + DECODE_S:
                found.append(RequestEvent(name, "ended", 0.0))
                del self._requests[name]
        while len(self._requests) < self._running:
            name = f"{next(self._names):012x}0000"
            # apart from each other, so that they are in all stages
            self._requests[name] = age_s + len(self._requests) / self._running
            sizes: dict[str, str | float] = {"prompt_tokens": 4000, "max_tokens": 256}
            place: dict[str, str | float] = {"owner": "decode-0", "group": "prefill-0 prefill-1"}
            found.append(RequestEvent(name, "queued", 0.0, sizes))
            found.append(RequestEvent(name, "reserving", 0.0, place))
        return found
