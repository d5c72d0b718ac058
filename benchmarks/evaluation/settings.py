"""What the evaluation compares: hardware, workloads and systems."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace

from sps2.cli.simulator import hardware
from sps2.cli.simulator.clusters import PAGE_TOKENS, Wanted, setup_of
from sps2.cli.simulator.setup import Setup
from sps2.cli.workload import sources
from sps2.cli.workload.requests import Workload
from sps2.common.config import Cluster, Kv

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
class System:
    """A policy on an arrangement of the shards."""

    name: str
    policy: str
    decode_share: float = 0.0
    """Of the shards, that only decode, at least one; 0: all are mixed."""
    chunk_tokens: int = 0

    def setup(self, cards: Hardware) -> Setup:
        counts = 0, 0, cards.shards
        if self.decode_share:
            decode = max(1, round(cards.shards * self.decode_share))
            counts = cards.shards - decode, decode, 0
        made = cards.setup(self.policy, *counts)
        scheduler = replace(made.config.scheduler, chunk_tokens=self.chunk_tokens)
        kv = Kv(page_tokens=PAGE_TOKENS)
        config: Cluster = replace(made.config, scheduler=scheduler, kv=kv)
        pages = hardware.pages(made.model, cards.card, PAGE_TOKENS, cards.tp)
        return Setup(config, made.model, made.itemsize, made.profile, pages)


SYSTEMS = (
    System("sps2", "sps2", 1 / 4),
    System("sps2, half decode", "sps2", 1 / 2),
    System("sps2, mixed shards", "sps2"),
    System("fcfs", "fcfs", 1 / 4),
    System("sarathi", "sarathi", chunk_tokens=512),
    System("sarathi, chunks of 2,048", "sarathi", chunk_tokens=2048),
    System("distserve", "distserve"),
    System("distserve, a quarter decodes", "distserve", 1 / 4),
    System("splitwise", "splitwise"),
    System("loongserve", "loongserve"),
    System("pecsched", "pecsched", 1 / 4),
    System("preflow", "preflow", 1 / 4),
    System("lars", "lars", 1 / 4),
    System("sjf", "sjf", 1 / 4),
)
