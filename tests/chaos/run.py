"""Breaks a cluster on purpose, by seeds: `python -m tests.chaos.run --seeds 1-200`.

Every seed draws the clients' streams and the faults. The same seeds make the same schedule; the
moments at which processes meet it differ, as they do in life.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoints import write_checkpoint
from . import checks, faults, load
from .cluster import SHAPES, ProxiedCluster, copied, described, left_behind, temporary
from .table import table

STREAMS = 6
HANGS_S = 200.0
"""A stream that has not ended by then hangs."""
IDLE_S = 180.0
SLOW_S = 5.0
"""A cluster that comes to rest later says what it waited for."""
STARTS_S = 300.0
BANK = 16


@dataclass
class Result:
    """What became of one seed."""

    seed: int
    faults: list[faults.Fault]
    seen: list[load.Seen] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    since_s: float = field(default_factory=time.monotonic)
    took_s: float = 0.0
    slow: str = ""
    """What took long to come to rest."""

    def lines(self) -> list[str]:
        ends = Counter(each.end for each in self.seen)
        told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
        slowest_s = max((each.took_s for each in self.seen), default=0.0)
        return [
            f"seed {self.seed}: {'WRONG' if self.wrong else 'well'} in {self.took_s:.1f} s, "
            f"the slowest stream in {slowest_s:.1f} s: {told}",
            *(f"    {fault}" for fault in self.faults),
            *([f"    {self.slow}"] if self.slow else []),
            *(
                f"    {each.end}: {each.message} ({len(each.tokens)} of {each.plan.tokens} tokens, "
                f"prompt {len(each.plan.known.prompt)}, {each.plan.way}, after {each.took_s:.1f} s)"
                for each in self.seen
                if each.end not in ("answer", "left")
            ),
            *(f"    WRONG: {why}" for why in self.wrong),
        ]


@dataclass(frozen=True)
class Choice:
    """What is broken, and how."""

    kinds: Sequence[str] = faults.KINDS
    most: int = 3
    """Faults of one seed."""
    shape: str = "apart"

    def __str__(self) -> str:
        return f"--kinds {','.join(self.kinds)} --most {self.most} --shape {self.shape}"


USUAL = Choice()


async def one(
    seed: int, cluster: ProxiedCluster, bank: Sequence[load.Known], choice: Choice
) -> Result:
    """Run one seed on a cluster that is idle."""
    plans = load.drawn(seed, bank, STREAMS)
    result = Result(seed, faults.drawn(seed, cluster.services, choice.kinds, choice.most))
    before, result.since_s = await checks.marks(cluster), time.monotonic()
    address, url = cluster.cluster.gateway_address, cluster.cluster.http_url
    clients = [asyncio.create_task(load.run(plan, address, url)) for plan in plans]
    happening = [asyncio.create_task(faults.happen(each, cluster)) for each in result.faults]
    _, hanging = await asyncio.wait(clients, timeout=HANGS_S)
    await asyncio.gather(*happening)
    cluster.resume()
    for client in hanging:
        plan = plans[clients.index(client)]
        result.wrong.append(
            f"a stream hangs: prompt {len(plan.known.prompt)}, {plan.tokens} tokens, {plan.way}"
        )
        client.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    for client in clients:
        if client in hanging:
            continue
        if error := client.exception():
            result.wrong.append(f"a client failed: {error!r}")
            continue
        seen = client.result()
        result.seen.append(seen)
        if seen.wrong:
            result.wrong.append(f"{seen.wrong}{seen.end}: {seen.message}")
    settled = await checks.idle(cluster, IDLE_S)
    result.wrong += settled.wrong
    if settled.took_s > SLOW_S:
        result.slow = f"at rest after {settled.took_s:.1f} s; the last was: {settled.last[0]}"
    result.wrong += await checks.grown(cluster, before)
    result.took_s = time.monotonic() - result.since_s
    return result


async def many(
    seeds: Sequence[int], model: Path, folder: Path, choice: Choice = USUAL
) -> list[Result]:
    """Run seeds one after the other on one cluster; stops at the first that goes wrong."""
    before = temporary()
    cluster = ProxiedCluster(folder, described(folder, model, choice.shape))
    results: list[Result] = []
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(cluster.running())
        bank = await prepared(cluster)
        for seed in seeds:
            result = await one(seed, cluster, bank, choice)
            results.append(result)
            print("\n".join(result.lines()), flush=True)
            if result.wrong:
                print(cluster.tail(40), flush=True)
                break
    if left := left_behind(before):
        results[-1].wrong += [f"left behind: {each}" for each in left]
        print("\n".join(left))
    return results


async def prepared(cluster: ProxiedCluster) -> list[load.Known]:
    """What a new cluster answers without faults."""
    try:
        async with asyncio.timeout(STARTS_S):
            await cluster.ready()
            async with cluster.client() as client:
                return await load.known(client, BANK)
    except TimeoutError:
        print(cluster.tail(20))
        raise


def _numbers(text: str) -> list[int]:
    """The seeds of `7`, `1-200` or `3,5-9`."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__)
    parser.add_argument(
        "--seeds", type=_numbers, default=_numbers("1-20"), help="as 7, 1-200 or 3,5-9"
    )
    parser.add_argument(
        "--kinds", default=",".join(faults.KINDS), help=f"of faults: {', '.join(faults.KINDS)}, end"
    )
    parser.add_argument(
        "--apart", type=int, default=25, help="seeds on one cluster, then a new one"
    )
    parser.add_argument("--model", type=Path, help="a checkpoint, instead of a tiny random one")
    parser.add_argument("--most", type=int, default=3, help="faults of one seed")
    parser.add_argument("--shape", choices=SHAPES, default="apart", help="of the cluster")
    parser.add_argument("--table", action="store_true", help="print what clients saw, as Markdown")
    arguments = parser.parse_args()
    choice = Choice(arguments.kinds.split(","), arguments.most, arguments.shape)
    done: list[Result] = []
    seeds = list(arguments.seeds)
    with tempfile.TemporaryDirectory(prefix="chaos") as named:
        model = arguments.model or Path(named) / "checkpoint"
        if arguments.model is None:
            write_checkpoint("smollm2", model)
        while seeds:
            folder = Path(tempfile.mkdtemp(dir=named))
            os.environ["SPS2_HOME"] = str(folder)
            served = copied(model, folder)
            results = asyncio.run(many(seeds[: arguments.apart], served, folder, choice))
            done += results
            seeds = seeds[len(results) :]
    wrong = [result.seed for result in done if result.wrong]
    if arguments.table:
        print("\n".join(table([(each.since_s, each.faults, each.seen) for each in done])))
    for seed in wrong:
        print(f"to repeat it: python -m tests.chaos.run --seeds {seed} {choice}")
    print(f"{len(arguments.seeds) - len(wrong)} of {len(arguments.seeds)} seeds went well")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
