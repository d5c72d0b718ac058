"""Soak of the data plane: N processes, all pairs, both directions, cancels, and a kill a minute.

    python benchmarks/soak_transport.py --backend ucx --minutes 20 --processes 4

Prints a line of JSON every minute and one at the end; fails (exit code 1) on a stall, a wrong byte,
growth of memory or file descriptors, a rescue by the watchdog, or work while idle.
"""

import argparse
import asyncio
import json
import random
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

STALL_S = 1.0
STREAM_STALL_S = 5.0
IDLE_PERCENT = 1.0
GROWTH_BYTES = 128 << 20
GROWTH_FDS = 8
SAMPLE_S = 2.0
WARM_UP_S = 30.0
ANSWER_S = 60.0

WORKER = Path(__file__).with_name("soak_worker.py")
Report = dict[str, Any]


class Member:
    """One worker process and what was sampled of it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.name = ""
        self.peer: Report = {}
        self.started = monotonic()
        self.rss: list[tuple[float, int]] = []
        self.fds: list[tuple[int, int]] = []
        self.last: Report = {}
        self._lock = asyncio.Lock()

    @classmethod
    async def start(cls, name: str, backend: str, seed: int) -> "Member":
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(WORKER), name, backend, str(seed), stdin=PIPE, stdout=PIPE
        )
        member = cls(process)
        greeting = await member._answer()
        member.name, member.peer = name, greeting["peer"]
        return member

    async def ask(self, do: str, **arguments: object) -> Report:
        async with self._lock:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            return await self._answer()

    async def sample(self) -> None:
        self.last = await self.ask("report")
        self.rss.append((monotonic() - self.started, self.last["rss_bytes"]))
        self.fds.append((self.last["peers"], self.last["fds"]))

    async def _answer(self) -> Report:
        assert self.process.stdout is not None
        async with asyncio.timeout(ANSWER_S):
            line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"worker {self.name or self.process.pid} died")
        return json.loads(line)  # type: ignore[no-any-return]

    @property
    def rss_growth(self) -> int | None:
        """Median of the last quarter of its life over that of the first after warming up."""
        warm = [rss for age, rss in self.rss if age > WARM_UP_S]
        quarter = len(warm) // 4
        if quarter < 5:
            return None
        return int(median(warm[-quarter:]) - median(warm[:quarter]))

    @property
    def fd_growth(self) -> int:
        """Most that the same number of peers ever took more than the first time."""
        first: dict[int, int] = {}
        for peers, fds in self.fds:
            first.setdefault(peers, fds)
        latest = dict(self.fds)
        return max((latest[peers] - first[peers] for peers in latest), default=0)


class Soak:
    """The processes of one run."""

    def __init__(self, backend: str, processes: int, seed: int) -> None:
        self.backend = backend
        self.processes = processes
        self.random = random.Random(seed)
        self.members: list[Member] = []
        self.finished: list[Report] = []
        self.growth: list[tuple[int, int]] = []
        self.started = 0
        self.kills = 0

    async def add(self) -> Member:
        """Start a process and make it known to the others."""
        self.started += 1
        member = await Member.start(f"soak-{self.started}/1", self.backend, self.started)
        for other in self.members:
            await other.ask("meet", peer=member.peer)
            await member.ask("meet", peer=other.peer)
        self.members.append(member)
        return member

    async def kill_one(self) -> None:
        """SIGKILL a process and start another in its place."""
        victim = self.members.pop(self.random.randrange(len(self.members)))
        victim.process.kill()
        await victim.process.wait()
        self.retire(victim)
        self.kills += 1
        for other in self.members:
            await other.ask("forget", name=victim.name)
        member = await self.add()
        await member.ask("go")

    def retire(self, member: Member) -> None:
        self.finished.append(member.last)
        self.growth.append((member.rss_growth or 0, member.fd_growth))

    def summary(self) -> Report:
        reports = [report for report in (*self.finished, *(m.last for m in self.members)) if report]
        growth = [*self.growth, *((m.rss_growth or 0, m.fd_growth) for m in self.members)]

        def total(key: str) -> int:
            return sum(report[key] for report in reports)

        def worst(key: str) -> float:
            return float(max(report[key] for report in reports))

        return {
            "backend": self.backend,
            "messages": total("messages"),
            "gigabytes": round(total("bytes") / 1e9, 1),
            "wrong": total("wrong") + total("bad"),
            "cancelled_sends": total("cancelled_sends"),
            "cancelled_receives": total("cancelled_receives"),
            "dropped": total("dropped"),
            "kills": self.kills,
            "longest_gap_s": worst("longest_gap_s"),
            "longest_gap_after_kill_s": worst("longest_gap_after_kill_s"),
            "longest_stream_gap_s": worst("longest_stream_gap_s"),
            "loop_lag_s": worst("loop_lag_s"),
            "rescues": total("rescues"),
            "rss_mb": [report["rss_bytes"] >> 20 for report in reports[-len(self.members) :]],
            "rss_growth_mb": max(rss for rss, _ in growth) >> 20,
            "fd_growth": max(fds for _, fds in growth),
        }

    async def run(self, minutes: float, kill_every_s: float, idle_s: float) -> Report:
        for _ in range(self.processes):
            await self.add()
        speed = await self.members[0].ask("speed", name=self.members[1].name)
        print(json.dumps(speed), flush=True)
        for member in self.members:
            await member.ask("go")

        start = minute = killed = monotonic()
        while monotonic() - start < minutes * 60:
            await asyncio.sleep(SAMPLE_S)
            for member in self.members:
                await member.sample()
            if monotonic() - killed >= kill_every_s:
                killed = monotonic()
                await self.kill_one()
            if monotonic() - minute >= 60:
                minute += 60
                print(json.dumps(self.summary()), flush=True)

        for member in self.members:
            await member.sample()
        result = self.summary() | speed
        expected = self.processes - 1
        result["lost_pairs"] = sum(abs(m.last["peers"] - expected) for m in self.members)
        idle = await asyncio.gather(*(m.ask("idle", seconds=idle_s) for m in self.members))
        return result | {
            "minutes": minutes,
            "idle_cpu_percent": max(report["idle_cpu_percent"] for report in idle),
        }

    async def close(self) -> None:
        for member in self.members:
            if member.process.stdin is not None:
                member.process.stdin.close()
        for member in self.members:
            try:
                async with asyncio.timeout(10):
                    await member.process.wait()
            except TimeoutError:
                member.process.kill()
                await member.process.wait()


def faults(result: Report) -> list[str]:
    """What in the result must not be, in words."""
    limits = {
        "wrong": 0,
        "longest_gap_s": STALL_S,
        "longest_gap_after_kill_s": STREAM_STALL_S,
        "longest_stream_gap_s": STREAM_STALL_S,
        "lost_pairs": 0,
        "rescues": 0,
        "rss_growth_mb": GROWTH_BYTES >> 20,
        "fd_growth": GROWTH_FDS,
        "idle_cpu_percent": IDLE_PERCENT,
    }
    return [
        f"{key} {result[key]} > {limit}" for key, limit in limits.items() if result[key] > limit
    ]


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--backend", choices=["ucx", "tcp"], default="ucx")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kill-every-s", type=float, default=60)
    parser.add_argument("--idle-s", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    soak = Soak(arguments.backend, arguments.processes, arguments.seed)
    try:
        result = await soak.run(arguments.minutes, arguments.kill_every_s, arguments.idle_s)
    finally:
        await soak.close()
    result["faults"] = faults(result)
    print(json.dumps(result), flush=True)
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
