"""Many streams at once: `python -m tests.chaos.streams --streams 2000`.

They begin within a few seconds at a cluster of a tiny random model, over HTTP and the bus
alternately. Each must have its whole answer, with the tokens of a run in peace. Printed are the
delays between tokens as clients saw them, and the most memory that each service had.
"""

import argparse
import asyncio
import random
import sys
from collections import Counter, defaultdict
from contextlib import suppress

import numpy as np

from sps2.common.client import AsyncClient
from sps2.common.config import Cluster
from sps2.common.errors import ServiceError
from sps2.services.descriptors import allow_all

from . import load
from .cluster import SPANS, tiny
from .rolling import failed

BANK = 64
SAMPLE_S = 1.0
PEACE_S = 1.0
MIB = 1 << 20


class Watch:
    """The most memory of each service, in bytes, and the most streams at once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.first: dict[str, int] = {}
        self.most: dict[str, int] = defaultdict(int)
        self.running = 0

    async def sample(self, client: AsyncClient) -> None:
        """Ask once."""
        status = await client.status()
        for each in status.services:
            self.first.setdefault(each.service, each.rss_bytes)
            self.most[each.service] = max(self.most[each.service], each.rss_bytes)
        self.running = max(self.running, len(status.requests))

    async def watch(self) -> None:
        """Ask until cancelled."""
        async with AsyncClient(self._cluster.gateway_addresses) as client:
            while True:
                with suppress(ServiceError):
                    await self.sample(client)
                await asyncio.sleep(SAMPLE_S)


async def _run(cluster: Cluster, streams: int, within_s: float) -> int:
    allow_all()
    watch = Watch(cluster)
    async with AsyncClient(cluster.gateway_addresses) as client:
        bank = await load.known(client, BANK)
        await asyncio.sleep(PEACE_S)
        await watch.sample(client)
    draw = random.Random(0)
    longest = sorted(bank, key=lambda known: -len(known.answer))[: BANK // 2]
    plans = [
        load.Plan(known, len(known.answer), within_s * draw.random(), ("http", "bus")[index % 2])
        for index, known in enumerate(draw.choices(longest, k=streams))
    ]
    address, url = cluster.gateway_addresses, cluster.http_url
    watching = asyncio.create_task(watch.watch())
    seen = await asyncio.gather(*(load.run(plan, address, url) for plan in plans))
    watching.cancel()
    first = [each.times_s[1] - each.times_s[0] for each in seen if len(each.tokens)]
    gaps = [
        b - a for each in seen for a, b in zip(each.times_s[1:-1], each.times_s[2:-1], strict=False)
    ]
    took_s = max(each.times_s[-1] for each in seen) - min(each.times_s[0] for each in seen)
    print(
        f"{len(seen)} streams in {took_s:.0f} s, at most {_at_once(seen)} at once, "
        f"{watch.running} seen in the cluster: {dict(Counter(each.end for each in seen))}"
    )
    tokens = sum(len(each.tokens) for each in seen)
    print(f"{tokens} tokens, {tokens / took_s:.0f} a second")
    for what, found in (("first token", first), ("between tokens", gaps)):
        usual, late = np.quantile(found, (0.5, 0.99))
        print(f"{what}: median {usual:.3f} s, p99 {late:.3f} s, most {max(found):.3f} s")
    print("| service | MiB before | MiB at most |\n|---|---|---|")
    for service, most in watch.most.items():
        print(f"| {service} | {watch.first[service] / MIB:.0f} | {most / MIB:.0f} |")
    wrong = failed(seen)
    print("\n".join(wrong[:20]) or "every stream had its whole answer")
    return bool(wrong)


def _at_once(seen: list[load.Seen]) -> int:
    edges = [(each.times_s[0], 1) for each in seen] + [(each.times_s[-1], -1) for each in seen]
    return int(np.cumsum([step for _, step in sorted(edges)]).max())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.streams", description=__doc__)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--within-s", type=float, default=10.0, help="all begin within")
    parser.add_argument("--prefill", type=int, default=1)
    parser.add_argument("--decode", type=int, default=1)
    parser.add_argument("--pool-tokens", type=int, default=1 << 20, help="of each decode shard")
    options = parser.parse_args()
    more = options.streams + 64
    with tiny(
        prefill=options.prefill,
        decode=options.decode,
        pool_tokens=options.pool_tokens,
        gateway={"max_requests": more, "max_connections": more},
        scheduler=SPANS | {"max_queue": more},
    ) as cluster:
        return asyncio.run(_run(cluster, options.streams, options.within_s))


if __name__ == "__main__":
    sys.exit(main())
