"""32 concurrent requests of 10 to 6,000 tokens, each against its own single run (greedy float32).

    python tests/acceptance/mixed_load.py [--requests 32] [--prefill 2] [--decode 2]
    python tests/acceptance/mixed_load.py --policies all --longest 1500 --mixed 2 --pool-tokens 4096

With several policies each has a cluster of its own; the single runs are those of the first. Mixed
shards change their duties meanwhile. A pool that holds few of the requests makes answers grow and
give way. A different pick where the two best log-probabilities are within 1e-3 is reported as a
near tie.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from typing import get_args

from answers import ask, compare
from passage import passage

from sps2.cli.local import running_cluster
from sps2.common import config
from sps2.common.api import Completion
from sps2.common.bus.peer import Peer
from sps2.common.client import AsyncClient
from sps2.common.config.sections import Policy
from sps2.common.messages import Role, SetDuty
from sps2.common.models import locate
from sps2.common.text.tokens import Tokenizer

PORT = 18600
DUTIES: tuple[Role, ...] = ("decode", "mixed", "prefill", "mixed")
"""Of the last mixed shard, in turn."""
PAUSE_S = 2.0

Prompts = list[tuple[list[int], int]]


async def run(prompts: Prompts, alone: list[Completion], mixed: int) -> int:
    """Ask everything at once; `alone` is filled if it is empty. Returns 1 if an answer differs."""
    cluster = config.load(port=PORT)
    async with AsyncClient(cluster.gateway_address) as client:
        if not alone:
            alone += [await ask(client, *each, "alone") for each in prompts]
        started = time.monotonic()
        changing = asyncio.create_task(change_duties(mixed))
        together = await asyncio.gather(*(ask(client, *each, "together") for each in prompts))
        elapsed = time.monotonic() - started
        changing.cancel()
        status = await client.status()
    verdicts = [compare(*pair) for pair in zip(alone, together, strict=True)]
    for (prompt, tokens), verdict in zip(prompts, verdicts, strict=True):
        if verdict != "equal":
            print(f"  {len(prompt):5} + {tokens:3} tokens: {verdict}")
    scheduler = next(each for each in status.services if each.service == "scheduler")
    counts = Counter(verdict.split(" at ")[0] for verdict in verdicts)
    print(
        f"  {dict(counts)} in {elapsed:.1f} s; {scheduler.counters['preemptions']:.0f} answers "
        f"gave way; leaked {status.leaked_pages} pages",
        flush=True,
    )
    return int(counts["DIFFERENT"] > 0 or status.leaked_pages > 0)


async def change_duties(mixed: int) -> None:
    """Give the last mixed shard one duty after the other; nothing without mixed shards."""
    peer = Peer(config.load(port=PORT).gateway_address, config.Bus(), "gateway")
    try:
        for duty in DUTIES * 100 * bool(mixed):
            await asyncio.sleep(PAUSE_S)
            await peer.call(SetDuty(f"mixed-{mixed - 1}", duty))
    finally:
        await peer.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--longest", type=int, default=6000)
    parser.add_argument("--prefill", type=int, default=2)
    parser.add_argument("--decode", type=int, default=2)
    parser.add_argument("--mixed", type=int, default=0)
    parser.add_argument("--pool-tokens", type=int, default=0)
    parser.add_argument("--chunk-tokens", type=int, default=0)
    parser.add_argument("--policies", nargs="+", default=["sps2"])
    arguments = parser.parse_args()

    text = Tokenizer(locate(arguments.model)).encode(passage(2 * arguments.longest))
    random.seed(1)
    prompts = []
    for index in range(arguments.requests):
        share = index / max(1, arguments.requests - 1)
        length = int(10 * (arguments.longest / 10) ** share)
        start = random.randrange(len(text) - length)
        prompts.append((text[start : start + length], random.randrange(8, 64)))
    random.shuffle(prompts)
    policies = get_args(Policy) if arguments.policies == ["all"] else arguments.policies
    shards = {"prefill": arguments.prefill, "decode": arguments.decode}
    if arguments.mixed:
        shards = {"mixed": arguments.mixed}
    alone: list[Completion] = []
    failed = 0
    for policy in policies:
        print(policy, flush=True)
        with running_cluster(
            name="acceptance",
            port=PORT,
            model=arguments.model,
            dtype="float32",
            scheduler={"policy": policy, "chunk_tokens": arguments.chunk_tokens},
            kv={"pool_tokens": arguments.pool_tokens, "growth_tokens": 32},
            **shards,
        ):
            moving = arguments.mixed if policy not in ("distserve", "splitwise") else 0
            failed += asyncio.run(run(prompts, alone, moving))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
