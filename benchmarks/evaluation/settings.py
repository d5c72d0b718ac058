"""What the evaluation compares: hardware, workloads and systems."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace

from sps2.cli.simulator.clusters import Wanted, setup_of
from sps2.cli.simulator.setup import Setup
from sps2.cli.workload import sources
from sps2.cli.workload.requests import Workload

REQUESTS = 300
"""Of a run."""
LOADS = (0.3, 0.6, 0.9, 1.1)
"""Arrivals, as shares of what the cards could prefill if they did nothing else."""
SESSIONS = (8, 16, 32, 64)
"""Conversations that begin within a minute, in the closed loop."""


@dataclass(frozen=True)
class Hardware:
    """Cards that shards are made of. link_gbit: between hosts, for each card; None: NVLink."""

    name: str
    card: str
    cards: int
    model: str
    tp: int = 1
    link_gbit: float | None = None

    @property
    def shards(self) -> int:
        return self.cards // self.tp

    def setup(self, policy: str, prefill: int, decode: int, mixed: int) -> Setup:
        """A cluster of these cards.

        A shard of several cards is simulated as one card that is as fast as they are together, so
        that every policy may do with it what it does with one card.
        """
        wanted = Wanted(
            self.model,
            self.card,
            prefill=prefill or None,
            decode=decode or None,
            mixed=mixed or None,
            link_gbit=self.link_gbit,
            cards_per_shard=self.tp,
        )
        return setup_of(wanted, policy)

    @cached_property
    def mixed(self) -> Setup:
        """All shards mixed, under `sps2`: the fastest for a request that is alone."""
        return self.setup("sps2", 0, 0, self.shards)

    def most_rate(self, workload: Workload) -> float:
        """Requests per second that the shards could prefill if they did nothing else."""
        profile = self.mixed.profile
        seconds = [
            profile.prefill_s(turn.prompt_tokens, turn.prompt_tokens**2 / 2)
            for turn in workload.turns
        ]
        return self.shards * len(seconds) / sum(seconds)


HARDWARE = (
    Hardware("8 x A100-80G, 8B", "A100-80G", 8, "llama-3-8b-1m"),
    Hardware("8 x H100, 8B", "H100-SXM", 8, "llama-3-8b-1m"),
    Hardware("8 x H100, 70B", "H100-SXM", 8, "llama-3-70b-1m", 4),
    Hardware("2 x 8 x H100 at 400 Gbit/s, 70B", "H100-SXM", 16, "llama-3-70b-1m", 4, 400.0),
    Hardware("2 x 8 x H100 at 25 Gbit/s, 8B", "H100-SXM", 16, "llama-3-8b-1m", 1, 25.0),
)


@dataclass(frozen=True)
class Set:
    """A workload at several loads. what: for people."""

    name: str
    what: str
    is_closed: bool
    make: Callable[[float | None, int, Path | None], Workload]
    """Of arrivals per second or, in a closed loop, sessions; a seed; and a folder of traces."""

    @property
    def loads(self) -> tuple[float, ...]:
        return SESSIONS if self.is_closed else LOADS


def _mixed(rate: float | None, seed: int, traces: Path | None) -> Workload:
    return sources.find("mixed", limit=REQUESTS, rate=rate, cv=1.0, seed=seed)


def _agents(sessions: float | None, seed: int, traces: Path | None) -> Workload:
    return sources.find(
        _source(traces, "agent_conversations.jsonl.gz", "agents"),
        limit=REQUESTS,
        rate=(sessions or 1.0) / 60,
        longest=128_000,
        longest_think_s=60.0,
        seed=seed,
    )


def _conversations(rate: float | None, seed: int, traces: Path | None) -> Workload:
    source = _source(traces, "mooncake_conversation_trace.jsonl", "mooncake")
    return sources.find(source, limit=REQUESTS, rate=rate, cv=1.0, seed=seed)


def _code(rate: float | None, seed: int, traces: Path | None) -> Workload:
    return sources.find("azure-code", limit=REQUESTS, rate=rate, cv=3.0, seed=seed)


def _source(traces: Path | None, file: str, name: str) -> str:
    return name if traces is None else str(traces / file)


SETS = (
    Set("A", "Azure conversations, the longest 5 % replaced by 100K to 500K tokens", False, _mixed),
    Set("B", "coding agents in a closed loop, think times of at most a minute", True, _agents),
    Set("C", "Mooncake's conversations", False, _conversations),
    Set("D", "Azure code completions in bursts (CV 3)", False, _code),
)


@dataclass(frozen=True)
class Arrangement:
    """What shards do. decode_share: of them only decode, at least one; 0: all are mixed."""

    name: str
    decode_share: float = 0.0
    chunk_tokens: int = 0

    def counts(self, shards: int) -> tuple[int, int, int]:
        """Prefill, decode and mixed shards."""
        if not self.decode_share:
            return 0, 0, shards
        decode = max(1, round(shards * self.decode_share))
        return shards - decode, decode, 0

    def setup(self, policy: str, cards: Hardware) -> Setup:
        made = cards.setup(policy, *self.counts(cards.shards))
        scheduler = replace(made.config.scheduler, chunk_tokens=self.chunk_tokens)
        return dataclasses.replace(made, config=replace(made.config, scheduler=scheduler))


APART = (Arrangement("a quarter decodes", 1 / 4), Arrangement("half decode", 1 / 2))
MIXED = Arrangement("mixed")
ARRANGEMENTS: dict[str, tuple[Arrangement, ...]] = {
    "sps2": (*APART, MIXED),
    "fcfs": (*APART, MIXED),
    "sarathi": tuple(
        Arrangement(f"mixed, chunks of {tokens:,}", chunk_tokens=tokens) for tokens in (512, 2048)
    ),
    "distserve": (*APART, MIXED),
    "splitwise": (MIXED,),
    "loongserve": (MIXED,),
    "pecsched": (*APART, MIXED),
    "preflow": (*APART, MIXED),
    "lars": (*APART, MIXED),
    "sjf": (*APART, MIXED),
}
"""By policy; of these it gets the one with which its mean TTFT is the least at the second load."""


def arrangements(policy: str, cards: Hardware) -> list[Arrangement]:
    """Those of a policy that differ on these cards."""
    known: dict[tuple[int, ...], Arrangement] = {}
    for each in ARRANGEMENTS[policy]:
        known.setdefault((*each.counts(cards.shards), each.chunk_tokens), each)
    return [*known.values()]
