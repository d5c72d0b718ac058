"""What must hold when all clients and all faults of a run have ended."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from sps2.common.errors import ServiceError
from sps2.common.messages import ClusterStatus

from .cluster import ProxiedCluster, descriptors

IDLE = ("owned", "held", "prefilling", "requests_waiting", "requests_running", "kv_leases")
"""Counters that are 0 in a cluster without requests."""
MORE_DESCRIPTORS = 40
"""How many files and sockets a process may have more than at first: links to peers come and go."""


class Marks(NamedTuple):
    """What a cluster had when it was idle at first: descriptors by process."""

    descriptors: dict[int, int]


async def marks(cluster: ProxiedCluster) -> Marks:
    pids = [cluster.pid(service) for service in cluster.services]
    return Marks({pid: descriptors(pid) for pid in pids})


@dataclass
class Settled:
    """How a cluster came to rest: `wrong` is what never came right, `last` what came right last."""

    wrong: list[str]
    last: list[str]
    took_s: float


async def idle(cluster: ProxiedCluster, within_s: float) -> Settled:
    """Wait until the cluster is ready and nothing is held."""
    since_s = time.monotonic()
    last = wrong = ["the cluster never answered"]
    while wrong and time.monotonic() < since_s + within_s:
        with suppress(ServiceError, TimeoutError):
            last, wrong = wrong, busy(await cluster.status())
            if wrong:
                await asyncio.sleep(0.1)
    return Settled(wrong, last, time.monotonic() - since_s)


def busy(status: ClusterStatus) -> list[str]:
    """Why a cluster is not idle and whole, in words."""
    wrong = []
    if not status.ready or status.missing:
        wrong.append(f"it waits for {status.waiting_for or status.missing}")
    wrong += [
        f"{each.service} is {each.state}" for each in status.services if each.state != "ready"
    ]
    wrong += [f"{each.id} is {each.state}" for each in status.shards if each.state != "ready"]
    wrong += [
        f"{each.id} has {each.pages_free} of {each.pages} pages free"
        for each in status.shards
        if each.pages_free != each.pages
    ]
    wrong += [f"a lease of {each.request}" for each in status.leases]
    wrong += [f"request {each.request} is {each.stage}" for each in status.requests]
    if status.leaked_pages:
        wrong.append(f"{status.leaked_pages} pages leaked")
    for each in status.services:
        wrong += [
            f"{each.service}: {name} is {each.counters[name]:g}"
            for name in IDLE
            if each.counters.get(name)
        ]
        counters = each.counters
        if (pages := counters.get("kv_pages")) is not None:
            unused = counters["kv_pages_free"] + counters["kv_pages_cached"]
            if unused != pages:
                wrong.append(f"{each.service}: {unused:g} of {pages:g} pages are free or cached")
    return wrong


async def grown(cluster: ProxiedCluster, before: Marks) -> list[str]:
    """Processes that have many more descriptors than at first."""
    now = await marks(cluster)
    return [
        f"process {pid} had {before.descriptors[pid]} descriptors, and has {count}"
        for pid, count in now.descriptors.items()
        if pid in before.descriptors and count > before.descriptors[pid] + MORE_DESCRIPTORS
    ]
