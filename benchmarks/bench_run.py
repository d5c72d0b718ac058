"""Brings peers up, has each measurement made of all of them in turn, and takes them down."""

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import measures
import psutil
from agents import Conversations
from bench_report import Sample
from machine import busy_s
from measures import Values
from peers.known import KINDS, Setup
from peers.peer import NO_FIELDS, Fields, Missing, Peer, PeerFailed, Reply
from peers.server import Server
from prompts import Prompts

TOGETHER = ("ttft", "tbt", "streams", "beside")
"""Parts that are measured interleaved, of all peers that are up."""
APART = ("agents",)
"""Measured of one peer at a time, each time started anew: with nothing cached."""
VARIANTS: dict[str, Fields] = {
    "sps2 balanced": {"sps2": {"attention": "balanced"}, "cache_salt": "balanced"},
    "sps2 SP 1": {"sps2": {"sp_degree": 1}, "cache_salt": "SP 1"},
}
"""TTFT is measured of these too. Their salt hides the KV of the same prompt asked before."""
WARM_UP_TOKENS = 512
WARM_UP_ANSWER = 8
FIRST_TOKENS = 16
"""Of the prompt by which a start is measured."""
SETTLE_S = 1.5
"""Before each measurement: a worker of vLLM looks for work in a loop for 1 s after its last."""
LIMIT_S = 1800.0
"""For one measurement."""


@dataclass(frozen=True)
class Task:
    """A measurement; `measure` makes it of one peer, for one repeat."""

    part: str
    setting: str
    measure: Callable[[Peer, int, Fields], Awaitable[Values]]


@dataclass
class Run:
    """All that is measured in one call of the program."""

    setup: Setup
    options: argparse.Namespace
    prompts: Prompts
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    async def all(self) -> None:
        names, parts = self._installed(), self.options.parts
        tasks = [task for task in self._tasks() if task.part in parts]
        for chosen in (TOGETHER, ("turns",), APART):
            mine = [task for task in tasks if task.part in chosen]
            able = [name for name in names if {task.part for task in mine} & {*KINDS[name].parts}]
            await self._by_turns(able, mine)
        if {"start", "memory"} & {*parts}:
            for repeat in range(self.options.repeat):
                for name in names:
                    if "start" in KINDS[name].parts:
                        await self._alone(name, repeat)

    def _installed(self) -> list[str]:
        found = []
        for name in self.options.peers:
            try:
                KINDS[name].make(self.setup, name)
                found.append(name)
            except Missing as why:
                print(f"{name} is left out: {why}", flush=True)
        return found

    def _tasks(self) -> list[Task]:
        options, make = self.options, self.prompts.make
        context = options.context

        async def ttft(peer: Peer, number: int, fields: Fields, tokens: int) -> Values:
            return await measures.ttft(peer, make(tokens, "ttft", number), fields)

        async def tbt(peer: Peer, number: int, _: Fields) -> Values:
            return await measures.tbt(peer, make(context, "tbt", number), options.tokens)

        async def streams(peer: Peer, number: int, _: Fields) -> Values:
            prompts = [make(context, "stream", number, row) for row in range(options.streams)]
            newcomers = [make(tokens, "newcomer", number) for tokens in options.newcomers]
            room = (self.setup.context - context) // 2
            return await measures.streams(peer, prompts, options.tokens, newcomers, room)

        async def beside(peer: Peer, number: int, _: Fields) -> Values:
            short, middle, long = options.beside
            return await measures.beside(peer, make, short, middle, long, number)

        async def turns(peer: Peer, number: int, _: Fields) -> Values:
            return await measures.turns(
                peer, self.prompts, options.conversation, options.tokens, number
            )

        async def agents(peer: Peer, _: int, __: Fields) -> Values:
            assert isinstance(peer, Server)
            return await Conversations(options.conversations).measure(peer)

        return [
            *(
                Task("ttft", f"{n} tokens", lambda p, r, f, n=n: ttft(p, r, f, n))  # type: ignore[misc]
                for n in options.lengths
            ),
            Task("tbt", f"1 stream at {context}", tbt),
            Task("streams", f"{options.streams} streams at {context}", streams),
            Task("beside", "short beside long", beside),
            Task("turns", f"conversation of {options.conversation}", turns),
            Task("agents", "agents' conversations / 16", agents),
        ]

    async def _by_turns(self, names: Sequence[str], tasks: Sequence[Task]) -> None:
        repeats = range(self.options.repeat)
        plan = [(list(names), list(repeats))]
        apart = any(task.part in APART for task in tasks)
        if apart or self.options.one_at_a_time or not _room_for(names):
            plan = [([name], [repeat]) for repeat in repeats for name in names]
        for group, numbers in plan if names else []:
            async with self._up(group) as peers:
                for task in tasks:
                    for repeat in numbers:
                        print(f"{task.part}, {task.setting}, repeat {repeat + 1}", flush=True)
                        await self._round(task, repeat, peers)

    async def _round(self, task: Task, repeat: int, peers: dict[str, Peer]) -> None:
        able = [name for name in peers if task.part in KINDS[name].parts]
        first = repeat % max(1, len(able))
        for name in able[first:] + able[:first]:
            cases: dict[str, Fields] = {name: NO_FIELDS}
            if (name, task.part) == ("sps2", "ttft"):
                cases |= VARIANTS
            for case, fields in cases.items():
                peer = peers.get(name)
                if peer and not await self._sample(task, repeat, name, peer, case, fields):
                    await peers.pop(name).stop()

    async def _alone(self, name: str, repeat: int) -> None:
        prompts, longest = self.prompts, self.options.memory_context
        print(f"start of {name}, repeat {repeat + 1}", flush=True)

        async def start(peer: Peer, number: int, _: Fields) -> Values:
            return await measures.start(peer, prompts.make(FIRST_TOKENS, "start", number))

        async def memory(peer: Peer, number: int, _: Fields) -> Values:
            prompt = prompts.make(longest, "memory", number)
            return await measures.memory(peer, prompt, self.options.tokens)

        peer = KINDS[name].make(self.setup, name)
        try:
            starting = Task("start", "start", start)
            if await self._sample(starting, repeat, name, peer) and "memory" in self.options.parts:
                task = Task("memory", f"at {longest} tokens", memory)
                await self._sample(task, repeat, name, peer)
        finally:
            await peer.stop()

    async def _sample(
        self,
        task: Task,
        repeat: int,
        name: str,
        peer: Peer,
        case: str = "",
        fields: Fields = NO_FIELDS,
    ) -> bool:
        """Whether it could be measured; if not, what went wrong is told and kept."""
        await asyncio.sleep(SETTLE_S)
        since_s, busy, own = time.perf_counter(), busy_s(), _cpu_s(peer)
        try:
            async with asyncio.timeout(LIMIT_S):
                values = await task.measure(peer, repeat, fields)
        except (PeerFailed, TimeoutError) as error:
            why = str(error) or f"no answer in {LIMIT_S:.0f} s; {peer.process.log_end()}"
            self._failed(f"{name}, {task.part}, {task.setting}: {why}")
            return False
        took_s, others = time.perf_counter() - since_s, busy_s() - busy - (_cpu_s(peer) - own)
        taken = max(0.0, others) / took_s
        sample = Sample(task.part, task.setting, case or name, repeat, values, taken)
        self.samples.append(sample)
        self.versions[name] = peer.version
        print(f"  {sample}", flush=True)
        return True

    def _failed(self, problem: str) -> None:
        print(problem, flush=True)
        self.problems.append(problem)

    @asynccontextmanager
    async def _up(self, names: Sequence[str]) -> AsyncIterator[dict[str, Peer]]:
        """The peers that came up, each warm; those that are left are taken down at the end."""
        peers: dict[str, Peer] = {}
        async with AsyncExitStack() as stack:
            for name in names:
                print(f"{name} is coming up", flush=True)
                peer = KINDS[name].make(self.setup, name)
                stack.push_async_callback(peer.stop)
                try:
                    await peer.start()
                    warm = self.prompts.make(WARM_UP_TOKENS, "warm")
                    async with asyncio.timeout(LIMIT_S):
                        await peer.ask([warm], WARM_UP_ANSWER, [Reply()])
                    peers[name] = peer
                except (PeerFailed, TimeoutError) as error:
                    why = str(error) or f"no answer in {LIMIT_S:.0f} s; {peer.process.log_end()}"
                    self._failed(f"{name} did not come up: {why}")
                    await peer.stop()
            yield peers


def _room_for(names: Sequence[str]) -> bool:
    needed = sum(KINDS[name].room_gib for name in names)
    free: float = psutil.virtual_memory().available / (1 << 30)
    if needed > free:
        print(
            f"{', '.join(names)} need up to {needed:.0f} GiB together, {free:.0f} are free: "
            "one is up at a time",
            flush=True,
        )
    return needed <= free


def _cpu_s(peer: Peer) -> float:
    """CPU time of a peer and of this process."""
    times = os.times()
    return peer.process.cpu_s() + times.user + times.system
