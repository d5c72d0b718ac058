"""A shard's KV pool, sized by the configuration or by the memory that is free."""

import psutil
import torch

from sps2.common.model.pages import PagePool, page_bytes
from sps2.common.spans import pages_for
from sps2.services.shard import ReadyShard

POOL_SHARE = 0.4
"""Share of the memory available at start, for the pools of all shards of one machine."""
CARD_SHARE = 0.8
"""Share of a GPU's memory for weights and pools of its processes; the rest is for computing."""


async def pool_for(shard: ReadyShard) -> PagePool:
    """Create the pool of this process and add its counters to the heartbeats.

    All processes of a shard have the same number of pages.
    """
    dtype = torch.int8 if shard.cluster.kv.dtype == "int8" else shard.model.dtype
    pages = await shard.team.agreed(_pages(shard, dtype))
    place = shard.plane.device.place
    pool = PagePool(shard.model.config, pages, shard.cluster.kv.page_tokens, dtype, place)
    others = shard.about.counters
    shard.about.counters = lambda: (
        others() | {name: float(count) for name, count in dict(pool.counters).items()}
    )
    return pool


def _pages(shard: ReadyShard, dtype: torch.dtype) -> int:
    """Pages as configured, else of a share of the free memory; at most 16 longest prompts."""
    cluster, model = shard.cluster, shard.model
    page_tokens = cluster.kv.page_tokens
    if cluster.kv.pool_tokens:
        return pages_for(cluster.kv.pool_tokens, page_tokens)
    affordable = _free_bytes(shard) // page_bytes(model.config, page_tokens, dtype)
    return min(affordable, pages_for(16 * model.config.max_context, page_tokens))


def _free_bytes(shard: ReadyShard) -> int:
    """Bytes for the pool of this process; on a GPU, its part of the card less its weights."""
    neighbours, place = shard.about.neighbours, shard.plane.device.place
    if place.type == "cuda":
        sharing = neighbours.on_a_card(torch.cuda.device_count())
        card = torch.cuda.get_device_properties(place).total_memory
        return max(0, int(card * CARD_SHARE / sharing) - torch.cuda.memory_allocated(place))
    return int(psutil.virtual_memory().available * POOL_SHARE / neighbours.of_role)
