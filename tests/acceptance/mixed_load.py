"""32 concurrent requests of 10 to 6,000 tokens, each against its own single run (greedy float32).

    python tests/acceptance/mixed_load.py [--requests 32] [--prefill 2] [--decode 2]

A different pick where the two best log-probabilities are within 1e-3 is reported as a near tie.
"""

import argparse
import asyncio
import random
import sys
import time

from answers import ask, compare
from passage import passage

from sps2.cli.local import running_cluster
from sps2.common import config
from sps2.common.client import AsyncClient
from sps2.common.models import locate
from sps2.common.text.tokens import Tokenizer

PORT = 18600


async def run(prompts: list[tuple[list[int], int]]) -> int:
    async with AsyncClient(config.load(port=PORT).gateway_address) as client:
        alone = [await ask(client, *each, "alone") for each in prompts]
        started = time.monotonic()
        together = await asyncio.gather(*(ask(client, *each, "together") for each in prompts))
        elapsed = time.monotonic() - started
        status = await client.status()
    verdicts = [compare(*pair) for pair in zip(alone, together, strict=True)]
    for (prompt, tokens), verdict in zip(prompts, verdicts, strict=True):
        print(f"  {len(prompt):5} + {tokens:3} tokens: {verdict}")
    print(
        f"{len(prompts)} requests together took {elapsed:.1f} s; leaked {status.leaked_pages} pages"
    )
    return int(
        any(verdict.startswith("DIFFERENT") for verdict in verdicts) or status.leaked_pages > 0
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--longest", type=int, default=6000)
    parser.add_argument("--prefill", type=int, default=2)
    parser.add_argument("--decode", type=int, default=2)
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
    with running_cluster(
        name="acceptance",
        port=PORT,
        model=arguments.model,
        prefill=arguments.prefill,
        decode=arguments.decode,
        dtype="float32",
    ):
        return asyncio.run(run(prompts))


if __name__ == "__main__":
    sys.exit(main())
