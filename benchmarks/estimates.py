"""How far the predictions of /v1/estimate are from what requests then take.

    python benchmarks/estimates.py [--url http://127.0.0.1:8000] [--learn 60] [--requests 50]

Asks a running cluster, which nobody else uses: first `--learn` requests of mixed lengths, one after
another, from which it learns; then `--requests` others that come at random times, so that some wait
or share shards. Each is estimated just before it is sent. Printed is the mean of
|estimated - measured| / measured of the time to first token, by length and in all.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from statistics import fmean, median

from sps2.cli.bench.serve.backends import OpenAI, Prompt
from sps2.cli.bench.serve.http import Http
from sps2.cli.bench.serve.jobs import Job
from sps2.cli.bench.serve.load import Load
from sps2.cli.bench.serve.prompts import Prompts
from sps2.cli.bench.serve.reply import Reply
from sps2.cli.workload.arrivals import Arrivals
from sps2.cli.workload.requests import Turn

LENGTHS = (16, 64, 200, 600, 1500, 3000)
ANSWER_TOKENS = 4
RATE = 0.5
"""Requests per second."""
FIELDS = {"temperature": 0, "ignore_eos": True}


class Estimated:
    """Asks for an estimate before each request."""

    def __init__(self, url: str) -> None:
        self._http = Http(url, {})
        self._server = OpenAI(self._http, "/v1/completions", "", FIELDS)
        self.found: list[tuple[int, float, float]] = []
        """Tokens, and ms until the first token, estimated and measured."""

    async def models(self) -> list[str]:
        found = await self._server.models()
        self._server.model = found[0]
        return found

    async def ask(self, prompt: Prompt, answer_tokens: int, reply: Reply) -> None:
        body = {"prompt": prompt, "max_tokens": answer_tokens, **FIELDS}
        async with self._http.post("/v1/estimate", json.dumps(body).encode()) as answer:
            estimate = json.loads(await answer.body())
        await self._server.ask(prompt, answer_tokens, reply)
        if reply.stamps_s and estimate["ttft_ms"] is not None:
            self.found.append((len(prompt), estimate["ttft_ms"], 1000 * reply.ttft_s))

    async def close(self) -> None:
        await self._server.close()


async def measure(url: str, learn: int, requests: int) -> int:
    backend, draw, prompts = Estimated(url), random.Random(7), Prompts(7)
    await backend.models()
    first = [LENGTHS[number % len(LENGTHS)] for number in range(learn)]
    others = [round(draw.choice(LENGTHS) * draw.uniform(0.7, 1.3)) for _ in range(requests)]
    one_by_one = Load(_jobs(prompts, first, [0.0] * learn, 0), backend, max_concurrency=1)
    await one_by_one.run()
    backend.found.clear()
    load = Load(_jobs(prompts, others, Arrivals(RATE).times_s(requests, 7), learn), backend)
    await load.run()
    await backend.close()
    for reply in one_by_one.replies + load.replies:
        if reply.error:
            print(reply.error, file=sys.stderr)
    if not backend.found:
        return 1
    for low, high in zip((0, *LENGTHS), LENGTHS, strict=False):
        some = [
            (guess, took)
            for tokens, guess, took in backend.found
            if 1.3 * low < tokens <= 1.3 * high
        ]
        if some:
            error = fmean(abs(guess - took) / took for guess, took in some)
            print(f"up to {1.3 * high:.0f} tokens: {len(some)} requests, mean error {error:.0%}")
    errors = [abs(guess - took) / took for _, guess, took in backend.found]
    print(f"all {len(errors)}: mean error {fmean(errors):.1%}, median {median(errors):.1%}")
    return 0


def _jobs(
    prompts: Prompts, lengths: Sequence[int], times_s: Sequence[float], number: int
) -> list[Job]:
    """Requests whose prompts share nothing. number: of the first."""
    turns = [Turn(at_s, n, ANSWER_TOKENS) for at_s, n in zip(times_s, lengths, strict=True)]
    return [
        Job(turn, lambda _, turn=turn, index=index: prompts.tokens(turn, 1, index))  # type: ignore[misc]
        for index, turn in enumerate(turns, number)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--learn", type=int, default=60)
    parser.add_argument("--requests", type=int, default=50)
    options = parser.parse_args()
    return asyncio.run(measure(options.url, options.learn, options.requests))


if __name__ == "__main__":
    sys.exit(main())
