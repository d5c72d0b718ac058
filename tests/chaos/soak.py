"""Load, clients that leave and kills for a long time: `python -m tests.chaos.soak --minutes 30`.

Finds the rate of streams that a cluster sustains here, offers a share of it, and kills a service
every so often, in turn. Every stream must end once, with the right tokens. Errors are allowed only
from the kill of a gateway until the cluster is whole again. In the end it must come to rest with
all pages back. The memory of each process is sampled, and its slope printed.
"""

import argparse
import asyncio
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil

from ..checkpoints import write_checkpoint
from . import checks, faults, load
from .cluster import SHAPES, ProxiedCluster, copied, described, left_behind, temporary
from .run import IDLE_S, prepared

AT_ONCE = 8
"""Streams at once while the sustained rate is measured."""
SAMPLE_S = 5.0
WARM_UP_S = 240.0
"""Of a process, for which its memory is not part of the slope: its heap comes to its size."""
LEAST_SAMPLES = 12
MIB = 1 << 20


@dataclass
class Memory:
    """Samples of the processes of services: seconds and bytes, by service and process."""

    taken: dict[tuple[str, int], list[tuple[float, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    async def sample(self, cluster: ProxiedCluster) -> None:
        """Sample until cancelled."""
        while True:
            for service in cluster.services:
                pid = cluster.pid(service)
                try:
                    rss = psutil.Process(pid).memory_info().rss if pid else 0
                except psutil.NoSuchProcess:
                    continue
                if rss:
                    self.taken[service, pid].append((time.monotonic(), rss))
            await asyncio.sleep(SAMPLE_S)

    def lines(self) -> list[str]:
        """A table in Markdown: each service's most memory, and its slope once it is warm.

        The slope is that of a line fitted to each process by least squares, averaged over the
        processes of a service by how long they lived.
        """
        told = ["| service | processes | most, MiB | slope, MiB a minute |", "|---|---|---|---|"]
        services: dict[str, list[list[tuple[float, int]]]] = defaultdict(list)
        for (service, _), samples in self.taken.items():
            services[service].append(samples)
        for service, processes in services.items():
            most = max(rss for samples in processes for _, rss in samples) / MIB
            slopes = [each for each in map(_slope, processes) if each is not None]
            lived = sum(seconds for _, seconds in slopes)
            slope = f"{sum(a * b for a, b in slopes) / lived:+.2f}" if slopes else "too short"
            told.append(f"| {service} | {len(processes)} | {most:.0f} | {slope} |")
        return told


def _slope(samples: Sequence[tuple[float, int]]) -> tuple[float, float] | None:
    """MiB a minute, and the seconds that it is of; None for a process that lived too shortly."""
    warm = [each for each in samples if each[0] >= samples[0][0] + WARM_UP_S]
    if len(warm) < LEAST_SAMPLES:
        return None
    at, rss = np.array(warm, float).T
    return float(np.polyfit((at - at[0]) / 60, rss / MIB, 1)[0]), float(at[-1] - at[0])


@dataclass
class Soak:
    """A run: the streams that ended are counted, and only those that went wrong are kept."""

    cluster: ProxiedCluster
    bank: Sequence[load.Known]
    draw: random.Random
    leaving: float
    ends: Counter[str] = field(default_factory=Counter)
    firsts_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    gateway_away_s: list[tuple[float, float]] = field(default_factory=list)
    """From its death until the cluster is whole again."""

    def plan(self) -> load.Plan:
        """A stream that begins now."""
        known = self.draw.choice(self.bank)
        tokens = self.draw.randint(1, len(known.answer))
        way = self.draw.choice(("bus", "http"))
        leaves = self.draw.randrange(tokens) if self.draw.random() < self.leaving else None
        return load.Plan(known, tokens, 0.0, way, leaves)

    async def stream(self, plan: load.Plan) -> None:
        """Be one client, and judge what it saw."""
        address, url = self.cluster.cluster.gateway_address, self.cluster.cluster.http_url
        seen = await load.run(plan, address, url)
        self.ends[seen.end] += 1
        if len(seen.times_s) > 2:
            self.firsts_s.append(seen.times_s[1] - seen.times_s[0])
        is_error = seen.end not in ("answer", "left")
        if seen.wrong or (is_error and not self._is_gateways(seen)):
            self.wrong.append(
                f"{seen.wrong}{seen.end}: {seen.message} ({len(seen.tokens)} of {plan.tokens} "
                f"tokens, {plan.way}, after {seen.took_s:.1f} s)"
            )

    def _is_gateways(self, seen: load.Seen) -> bool:
        since_s, until_s = seen.times_s[0], seen.times_s[-1]
        return any(since_s < back_s and until_s > died_s for died_s, back_s in self.gateway_away_s)

    async def sustained(self, seconds: float) -> float:
        """Streams a second that the cluster ends if `AT_ONCE` are always under way."""
        until_s, done = time.monotonic() + seconds, 0

        async def client() -> None:
            nonlocal done
            while time.monotonic() < until_s:
                await self.stream(replace(self.plan(), leaves_after=None))
                done += 1

        since_s = time.monotonic()
        await asyncio.gather(*(client() for _ in range(AT_ONCE)))
        return done / (time.monotonic() - since_s)

    async def offer(self, rate: float, seconds: float) -> int:
        """Begin streams at random times, `rate` a second; returns the most at once."""
        until_s, streams, most = time.monotonic() + seconds, set[asyncio.Task[None]](), 0
        while time.monotonic() < until_s:
            streams.add(asyncio.create_task(self.stream(self.plan())))
            await asyncio.sleep(self.draw.expovariate(rate))
            ended = {each for each in streams if each.done()}
            for each in ended:
                each.result()
            streams -= ended
            most = max(most, len(streams))
        await asyncio.gather(*streams)
        return most

    async def kill(self, services: Sequence[str], every_s: float) -> None:
        """Kill services in turn until cancelled."""
        for service in cycle(services):
            await asyncio.sleep(every_s)
            print(f"{time.strftime('%T')} kill {service}; {dict(self.ends)}", flush=True)
            if service == "gateway":
                self.gateway_away_s.append((time.monotonic(), math.inf))
            await faults.happen(faults.Fault(0.0, "kill", service), self.cluster)
            if service == "gateway":
                await self.cluster.ready()
                self.gateway_away_s[-1] = self.gateway_away_s[-1][0], time.monotonic()


async def _soaked(cluster: ProxiedCluster, options: argparse.Namespace) -> list[str]:
    """What went wrong."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(cluster.running())
        bank = await prepared(cluster)
        soak = Soak(cluster, bank, random.Random(options.seed), options.leaving)
        await soak.sustained(options.measured_s)
        rate = options.load * await soak.sustained(options.measured_s)
        print(f"{options.load:.0%} of the sustained rate: {rate:.1f} streams a second", flush=True)
        before, memory = await checks.marks(cluster), Memory()
        beside = [
            asyncio.create_task(memory.sample(cluster)),
            asyncio.create_task(soak.kill(options.kill, options.kill_every_s)),
        ]
        most = await soak.offer(rate, 60 * options.minutes)
        for task in beside:
            task.cancel()
        settled = await checks.idle(cluster, IDLE_S)
        soak.wrong += settled.wrong + await checks.grown(cluster, before)
        print("\n".join(memory.lines()))
        first, last = np.quantile(soak.firsts_s, (0.5, 0.99))
        print(
            f"{sum(soak.ends.values())} streams, at most {most} at once: {dict(soak.ends)}; "
            f"first token after {first:.2f} s, p99 {last:.2f} s; at rest in {settled.took_s:.1f} s"
        )
        if soak.wrong:
            print(cluster.tail(40))
    return soak.wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--load", type=float, default=0.8, help="share of the sustained rate")
    parser.add_argument("--leaving", type=float, default=0.3, help="share of clients that leave")
    parser.add_argument("--kill-every-s", type=float, default=60.0)
    parser.add_argument("--kill", nargs="+", help="services to kill in turn, instead of all")
    parser.add_argument("--measured-s", type=float, default=30.0, help="for the sustained rate")
    parser.add_argument("--shape", choices=SHAPES, default="apart", help="of the cluster")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    left = temporary()
    with tempfile.TemporaryDirectory(prefix="soak") as named:
        os.environ["SPS2_HOME"] = named
        folder = Path(named)
        write_checkpoint("smollm2", folder / "checkpoint")
        model = copied(folder / "checkpoint", folder)
        cluster = ProxiedCluster(folder, described(folder, model, options.shape))
        options.kill = options.kill or cluster.services
        wrong = asyncio.run(_soaked(cluster, options))
    wrong += [f"left behind: {each}" for each in left_behind(left)]
    print("\n".join(wrong) or "nothing went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
