"""A shard's KV pool, sized by the configuration or by the memory that is free."""

import psutil
import torch

from sps2.common.model.pages import PagePool, page_bytes
from sps2.common.spans import pages_for
from sps2.services.shard import ReadyShard

POOL_SHARE = 0.4
"""Of the memory available at start, for the pools of all shards of one machine."""


async def pool_for(shard: ReadyShard) -> PagePool:
    """The pool of this process, which tells its counters; all of a shard have as many pages."""
    dtype = torch.int8 if shard.cluster.kv.dtype == "int8" else shard.model.dtype
    pages = await shard.team.agreed(_pages(shard, dtype))
    pool = PagePool(shard.model.config, pages, shard.cluster.kv.page_tokens, dtype)
    others = shard.about.counters
    shard.about.counters = lambda: (
        others() | {name: float(count) for name, count in dict(pool.counters).items()}
    )
    return pool


def _pages(shard: ReadyShard, dtype: torch.dtype) -> int:
    """As configured, else a share of the free memory, and no more than 16 longest prompts."""
    cluster, model = shard.cluster, shard.model
    page_tokens = cluster.kv.page_tokens
    if cluster.kv.pool_tokens:
        return pages_for(cluster.kv.pool_tokens, page_tokens)
    processes = cluster.shards_of(shard.role) * cluster.tp_of(shard.role)
    share = psutil.virtual_memory().available * POOL_SHARE / processes
    affordable = int(share) // page_bytes(model.config, page_tokens, dtype)
    return min(affordable, pages_for(16 * model.config.max_context, page_tokens))
