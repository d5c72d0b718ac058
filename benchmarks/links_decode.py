"""TBT where a request's KV lies on two hosts with a slow link between, against all of it on one.

    python benchmarks/links_decode.py [--rates 1000 100] [--tokens 7900] [--repeats 5]

Two clusters share the hosts that `links.py` describes: one decode shard, and two, each with a host
of its own and one thread. They answer the same prompts, interleaved; the ratio is of medians. Bytes
per token are what q and states took, beside the formula heads * (2 * head_dim * itemsize + 4) per
layer and holder. Printed as Markdown, and written as JSON under benchmarks/results/.
"""

import argparse
import asyncio
import itertools
import sys
import time
from contextlib import AsyncExitStack
from statistics import median

import msgspec
import record
from links import text_of
from links_cluster import CONTROL, Spread, host_names, spread
from links_network import Unavailable, inside, network

from sps2.cli.effective import effective
from sps2.common.api import CompletionChunk
from sps2.common.api.usage import Sps2Usage
from sps2.common.model.config import read
from sps2.common.models import locate

PORTS_APART = 100


class Answer(msgspec.Struct):
    """Milliseconds between tokens, and what the request took."""

    gaps_ms: list[float]
    usage: Sps2Usage


async def ask(up: Spread, prompt: list[int], tokens: int) -> Answer:
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    stamps: list[float] = []
    usage = None
    async for data in up.stream("/v1/completions", body):
        chunk = msgspec.json.decode(data, type=CompletionChunk)
        for choice in chunk.choices:
            if choice.logprobs:
                stamps += [time.perf_counter()] * len(choice.logprobs.tokens)
        usage = chunk.usage or usage
    assert usage is not None
    assert usage.sps2 is not None
    # the first gap has the rest of the KV's way to the decode shards
    gaps = [1e3 * (after - before) for before, after in itertools.pairwise(stamps)][1:]
    return Answer(gaps, usage.sps2)


async def measure(options: argparse.Namespace) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    with network(host_names(1, 2)) as built, inside(built.hosts[CONTROL]):
        async with AsyncExitStack() as stack:
            sides: dict[int, Spread] = {}
            for holders in (1, 2):
                cluster = effective(
                    None,
                    name=f"links-{holders}",
                    model=options.model,
                    port=8000 + PORTS_APART * holders,
                    prefill=1,
                    decode=holders,
                    threads=1,
                    transport="tcp",
                    kv={"pool_tokens": 2 * options.tokens, "prefix_cache": False},
                )
                sides[holders] = await stack.enter_async_context(spread(cluster, built.hosts))
                await sides[holders].ready()
            text = text_of(cluster)
            for rate in options.rates:
                built.shape(rate)
                answers: dict[int, list[Answer]] = {holders: [] for holders in sides}
                for repeat in range(options.repeats):
                    prompt = text[repeat * 16 : repeat * 16 + options.tokens]
                    for holders, up in sides.items():
                        answers[holders].append(await ask(up, prompt, options.answer))
                        print(rate, holders, median(answers[holders][-1].gaps_ms), flush=True)
                found.append(_row(rate, options, answers))
    return found


def _row(
    rate: int, options: argparse.Namespace, answers: dict[int, list[Answer]]
) -> dict[str, object]:
    local, spread_ms = (
        median(median(answer.gaps_ms) for answer in answers[holders]) for holders in (1, 2)
    )
    config = read(locate(options.model))
    usage = answers[2][0].usage
    steps = options.answer - 1
    return {
        "mbit_s": rate,
        "tokens": options.tokens,
        "local_ms": local,
        "two_holders_ms": spread_ms,
        "ratio": spread_ms / local,
        "bytes_per_token_and_layer": (usage.decode_bytes or 0) / steps / config.layers,
        "formula": config.heads * (2 * config.head_dim * 2 + 4),
        "migration_pays_after": usage.migration_pays_after,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", nargs="+", type=int, default=[1000, 100], help="Mbit/s")
    parser.add_argument("--tokens", type=int, default=7900, help="of the prompt")
    parser.add_argument("--answer", type=int, default=48, help="tokens to generate")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    try:
        found = asyncio.run(measure(options))
    except Unavailable as error:
        sys.exit(str(error))
    columns = list(found[0])
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row in found:
        cells = (f"{each:.2f}" if isinstance(each, float) else str(each) for each in row.values())
        print(f"| {' | '.join(cells)} |")
    path = record.write("links-decode", {"rows": found})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
