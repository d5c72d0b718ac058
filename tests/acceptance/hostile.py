"""Sends hostile tools, schemas, grammars and conversations in four protocols, beside a stream.

    python tests/acceptance/hostile.py [--count 2000] [--seed 1] [--port PORT_OF_A_CLUSTER]

Each request must be answered, or refused with a 4xx, within `SLOW_S`; no answer may fail within.
The longest pause of an ordinary stream, that of `/health`, and the memory of each process are
reported, and how many requests and pages are left in the end. A failure shows its seed;
`--seed N --count 1` repeats it, and `--show` prints its body.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from hostile_bodies import CHAT, MODEL, Case, case

from sps2.cli.local import running_cluster
from sps2.common import config
from sps2.common.client import AsyncClient
from sps2.common.messages import ClusterStatus

PORT = 18690
POOL_TOKENS = 16_384
"""So few that the memory of KV, which grows as it is used first, hides no leak."""
SLOW_S = 20.0
SLOW_TOKEN_S = 0.02
"""Besides, for each token of a prompt; several prompts are computed together."""
GROWTH_MB = 900
"""What a process may grow by: 370 MB are for KV, and the last grammars are kept."""


class Outcome(NamedTuple):
    """What became of a request; `fault` is empty if that is as it should be."""

    seed: int
    case: Case
    status: int
    took_s: float
    fault: str


async def sent(http: httpx.AsyncClient, seed: int) -> Outcome:
    made = case(seed)
    since_s, text = time.monotonic(), ""
    try:
        answer = await http.post(
            made.path, content=made.body, headers={"content-type": "application/json"}
        )
        status, text = answer.status_code, answer.text
        fault = fault_of(made, status, text)
    except httpx.HTTPError as error:
        status, fault = 0, f"{type(error).__name__}: {error}"
    took_s = time.monotonic() - since_s
    if not fault and took_s > SLOW_S + SLOW_TOKEN_S * prompt_tokens(text):
        fault = "slow"
    return Outcome(seed, made, status, took_s, fault)


def fault_of(made: Case, status: int, text: str) -> str:
    """What is wrong with an answer; empty if nothing."""
    if status != 200:
        return "" if 400 <= status < 500 and status != 499 else text[:300]
    lines = [line.removeprefix("data: ") for line in text.splitlines()]
    bad = [line for line in lines if '"internal_error"' in line or '"api_error"' in line]
    if bad:
        return bad[0][:300]
    return unfinished(made, text) if made.path == CHAT and text.startswith("{") else ""


def prompt_tokens(text: str) -> int:
    """As the usage of an answer says."""
    counts = re.findall(r'"(?:prompt_tokens|input_tokens|prompt_eval_count)": ?([0-9]+)', text)
    cached = re.findall(r'"cache_read_input_tokens": ?([0-9]+)', text)
    return max(map(int, counts), default=0) + max(map(int, cached), default=0)


def unfinished(made: Case, text: str) -> str:
    """Whether a whole chat that should be JSON is none."""
    asked = json.loads(made.body)
    choice = json.loads(text)["choices"][0]
    message = choice["message"]
    try:
        if choice["finish_reason"] == "tool_calls" and asked["tool_choice"] not in ("auto", None):
            for call in message["tool_calls"]:
                json.loads(call["function"]["arguments"])
        elif choice["finish_reason"] == "stop" and asked.get("response_format"):
            json.loads(message["content"])
    except ValueError:
        return f"no JSON: {str(message)[:300]}"
    return ""


async def watched(http: httpx.AsyncClient, gaps: list[float]) -> None:
    """An ordinary stream; the seconds between its tokens."""
    body = {"prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    while True:
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            last_s = time.monotonic()
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    gaps.append(time.monotonic() - last_s)
                    last_s = time.monotonic()


async def healthy(http: httpx.AsyncClient, waits: list[float]) -> None:
    while True:
        since_s = time.monotonic()
        await http.get("/health")
        waits.append(time.monotonic() - since_s)
        await asyncio.sleep(0.02)


async def status(port: int) -> ClusterStatus:
    async with AsyncClient(config.load(port=port).gateway_address) as client:
        return await client.status()


def memory_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def told(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds) or [0.0]
    shown = [ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99, 1)]
    print(f"{name}: median, 99%, worst: {' '.join(f'{each * 1000:.0f}' for each in shown)} ms")


async def attack(port: int, seeds: range, together: int) -> bool:
    before = {each.service: each.pid for each in (await status(port)).services}
    memory = {name: memory_mb(pid) for name, pid in before.items()}
    limits = httpx.Limits(max_connections=None)
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        gaps: list[float] = []
        waits: list[float] = []
        watchers = [
            asyncio.create_task(watched(http, gaps)),
            asyncio.create_task(healthy(http, waits)),
        ]
        await asyncio.sleep(5)
        told("alone, the stream", gaps)
        told("alone, /health", waits)
        gaps.clear()
        waits.clear()
        outcomes: list[Outcome] = []
        left = iter(seeds)

        async def one_by_one() -> None:
            for seed in left:
                outcome = await sent(http, seed)
                outcomes.append(outcome)
                if outcome.fault:
                    shown(outcome)

        await asyncio.gather(*(one_by_one() for _ in range(together)))
        told("the stream", gaps)
        told("/health", waits)
        broken = [watcher for watcher in watchers if watcher.done()]
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
    print("slowest:")
    for outcome in sorted(outcomes, key=lambda each: -each.took_s)[:5]:
        shown(outcome)
    print(dict(Counter((each.case.path, each.status) for each in outcomes).most_common()))
    faults = sum(bool(each.fault) for each in outcomes)
    good = not faults and not broken
    await asyncio.sleep(3)
    after = await status(port)
    for service in after.services:
        name, pid = service.service, service.pid
        grown = memory_mb(pid) - memory[name]
        print(f"{name}: {memory[name]:.0f} MB, {grown:+.0f} MB")
        good &= pid == before[name] and grown < GROWTH_MB
    print(
        f"{len(outcomes)} requests, {faults} faults; left: {len(after.requests)} requests, "
        f"{after.leaked_pages} leaked pages"
    )
    return good and not after.requests and not after.leaked_pages


def shown(outcome: Outcome) -> None:
    made = outcome.case
    print(
        f"  seed {outcome.seed}: {outcome.status} after {outcome.took_s:.1f} s, {made.path}, "
        f"{len(made.body)} bytes: {made.what[:160]}: {outcome.fault}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1, help="of the first request")
    parser.add_argument("--together", type=int, default=4)
    parser.add_argument("--port", type=int, help="of a cluster that runs; else one is started")
    parser.add_argument("--show", action="store_true", help="print the first body, and end")
    arguments = parser.parse_args()

    if arguments.show:
        sys.stdout.buffer.write(case(arguments.seed).body + b"\n")
        return 0
    port = arguments.port or PORT
    own: Any = nullcontext()
    if arguments.port is None:
        own = running_cluster(
            name="hostile", port=port, model=MODEL, mixed=2, kv={"pool_tokens": POOL_TOKENS}
        )
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    with own:
        return int(not asyncio.run(attack(port, seeds, arguments.together)))


if __name__ == "__main__":
    sys.exit(main())
