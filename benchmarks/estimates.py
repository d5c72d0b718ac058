"""How far the predictions of /v1/estimate are from what requests then take.

    python benchmarks/estimates.py [--url http://127.0.0.1:8000] [--learn 60] [--requests 50]

Asks a running cluster, which nobody else uses: first `--learn` requests of mixed lengths, one after
another, from which it learns; then `--requests` others that come at random times, so that some wait
or share shards. Each is estimated just before it is sent. Printed is the mean of
|estimated - measured| / measured of the time to first token, by length and in all.
"""

import argparse
import asyncio
import random
import time
from statistics import fmean, median

import httpx

LENGTHS = (16, 64, 200, 600, 1500, 3000)
APART_S = 2.0
"""Mean time between two requests."""


class Asking:
    """Asks one cluster."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=None, trust_env=False)
        self.found: list[tuple[int, float, float]] = []
        """Tokens, and ms until the first token, estimated and measured."""

    async def ask(self, tokens: int, draw: random.Random) -> None:
        prompt = [draw.randrange(1000, 40000) for _ in range(tokens)]
        body = {"prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        estimate = (await self._http.post("/v1/estimate", json=body)).raise_for_status().json()
        since_s = time.perf_counter()
        took_ms = 0.0
        async with self._http.stream(
            "POST", "/v1/completions", json=body | {"stream": True}
        ) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {") and not took_ms:
                    took_ms = 1000 * (time.perf_counter() - since_s)
        if estimate["ttft_ms"] is not None:
            self.found.append((tokens, estimate["ttft_ms"], took_ms))


async def measure(url: str, learn: int, requests: int) -> None:
    asking, draw = Asking(url), random.Random(7)
    for number in range(learn):
        await asking.ask(LENGTHS[number % len(LENGTHS)], draw)
    asking.found.clear()
    tasks = []
    for _ in range(requests):
        tokens = round(draw.choice(LENGTHS) * draw.uniform(0.7, 1.3))
        tasks.append(asyncio.create_task(asking.ask(tokens, draw)))
        await asyncio.sleep(draw.expovariate(1 / APART_S))
    await asyncio.gather(*tasks)
    errors = [abs(guess - took) / took for _, guess, took in asking.found]
    for low, high in zip((0, *LENGTHS), LENGTHS, strict=False):
        some = [
            (guess, took)
            for tokens, guess, took in asking.found
            if 1.3 * low < tokens <= 1.3 * high
        ]
        if some:
            error = fmean(abs(guess - took) / took for guess, took in some)
            print(f"up to {1.3 * high:.0f} tokens: {len(some)} requests, mean error {error:.0%}")
    print(f"all {len(errors)}: mean error {fmean(errors):.1%}, median {median(errors):.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--learn", type=int, default=60)
    parser.add_argument("--requests", type=int, default=50)
    options = parser.parse_args()
    asyncio.run(measure(options.url, options.learn, options.requests))


if __name__ == "__main__":
    main()
