"""How a shard ends without harm: it gets no new work, and finishes what it has or hands it over."""

import asyncio
import logging

from sps2.common.bus.peer import Peer
from sps2.common.config import Cluster
from sps2.common.errors import ServiceError
from sps2.common.messages import Done, KeepDraining, Retire

REACH_S = 1.0
"""How long a scheduler may be away that is to be told."""
HANDOVER_S = 5.0
"""How long it may take until others have what a shard did not finish."""

log = logging.getLogger(__name__)


class Draining:
    """Whether a shard drains: it remembers that for a scheduler that has restarted."""

    def __init__(self) -> None:
        self._drains = False

    def __call__(self) -> bool:
        return self._drains

    async def keep_draining(self, request: KeepDraining) -> Done:
        self._drains = request.draining
        return Done()


def longest_s(cluster: Cluster) -> float:
    """How long a shard takes at most from SIGTERM until it has no work."""
    return cluster.scheduler.drain_s + HANDOVER_S


async def retire(shard: str, cluster: Cluster, finish_s: float | None = None) -> None:
    """Give a shard no new work, and wait until it has none.

    What it has after `finish_s`, by default `drain_s`, is handed over to others. It ends at once if
    the scheduler is away: then the shard has no work.
    """
    finish_s = cluster.scheduler.drain_s if finish_s is None else finish_s
    scheduler = Peer(cluster.scheduler_address, cluster.bus, "scheduler", connect_s=REACH_S)
    try:
        async with (
            asyncio.timeout(finish_s + HANDOVER_S),
            scheduler.stream(Retire(shard, finish_s)) as items,
        ):
            async for unfinished in items:
                log.info("%s ends; it has %d requests", shard, len(unfinished.requests))
    except (ServiceError, TimeoutError) as error:
        log.warning("%s ends with what it has: %s", shard, str(error) or "it is late")
    finally:
        await scheduler.close()
