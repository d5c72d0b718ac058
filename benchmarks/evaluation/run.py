"""Simulates every policy on every set, and says which can be told apart."""

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any

import msgspec

from evaluation.settings import (
    ARRANGEMENTS,
    HARDWARE,
    SETS,
    Arrangement,
    Hardware,
    Set,
    arrangements,
)
from sps2.cli.simulator.alone import Alone
from sps2.cli.simulator.comparison import compare
from sps2.cli.simulator.outcomes import Run
from sps2.cli.simulator.simulation import Simulation
from sps2.cli.simulator.statistics import Objectives, Summary, figure, summarise
from sps2.cli.workload.requests import Workload

JUDGED = {
    "ttft_s.all.mean": 1,
    "ttft_s.short.p99": 1,
    "slowdown.all.p99": 1,
    "prefill_tokens_per_s": -1,
    "decode_tokens_per_s": -1,
}
"""Figures by which systems are ranked; 1: less is better."""
LONG_TOKENS = {"A": 16_000, "B": 32_000, "C": 16_000, "D": 4_000}
"""Longer prompts count as long."""


class Point(msgspec.Struct, frozen=True):
    """All policies at one load of a set. summaries: by policy, as `kept` makes them.

    arrangements: of the shards, by policy. losses: policies that are better than `sps2` beyond
    doubt, by figure, and answer as many requests; wins: those that are worse.
    """

    hardware: str
    set: str
    load: float
    rate: float
    arrangements: dict[str, str]
    summaries: dict[str, Any]
    losses: dict[str, list[str]]
    wins: dict[str, list[str]]


KEPT = (
    *(f"{name}.all.mean" for name in ("ttft_s", "tbt_s", "e2e_s", "slowdown")),
    *(f"{name}.all.p99" for name in ("ttft_s", "tbt_s", "e2e_s", "slowdown")),
    *(f"ttft_s.{group}.{level}" for group in ("short", "long") for level in ("mean", "p99")),
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "goodput_share",
    "cached_share",
    "starved",
    "sent_bytes_per_request.all",
)
"""Figures that a record keeps."""


def kept(summary: Summary) -> dict[str, Any]:
    """A summary as the record has it: value, low and high of each figure, to four digits."""
    found: dict[str, Any] = {"verdict": summary.verdict.state, "failed": summary.failed}
    for name in KEPT:
        each = figure(summary, name)
        found[name] = [_rounded(value) for value in (each.value, each.low, each.high)]
    return found


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if isfinite(value) else None


def points(
    hardware: Sequence[Hardware], sets: Sequence[Set], traces: Path | None, seed: int
) -> Iterator[Point]:
    """Simulate every combination, on all cores."""
    tasks = [
        (HARDWARE.index(cards), SETS.index(each), traces, seed)
        for cards in hardware
        for each in sets
    ]
    with multiprocessing.get_context("spawn").Pool() as pool:
        for number, found in enumerate(pool.imap(_set, tasks), 1):
            done = f"{number}/{len(tasks)}  {found[0].hardware}, set {found[0].set}"
            print(done, file=sys.stderr, flush=True)
            yield from found


def _set(task: tuple[int, int, Path | None, int]) -> list[Point]:
    """One kind of cards and one set, at all loads."""
    place, number, traces, seed = task
    cards, kind = HARDWARE[place], SETS[number]
    most_rate = 0.0 if kind.is_closed else cards.most_rate(kind.make(None, seed, traces))
    rates = [load if kind.is_closed else load * most_rate for load in kind.loads]
    lengths = (turn.prompt_tokens for turn in kind.make(rates[1], seed, traces).turns)
    alone = Alone(cards.mixed, lengths)
    chosen: dict[str, Arrangement] = {}
    for policy in ARRANGEMENTS:
        middle = kind.make(rates[1], seed, traces)
        tried = arrangements(policy, cards)
        runs = [_run(policy, each, cards, middle, alone) for each in tried]
        means = [_mean_ttft_s(run) for run in runs]
        chosen[policy] = tried[means.index(min(means))]
    return [
        _point(cards, kind, load, kind.make(rate, seed, traces), rate, chosen, alone, seed)
        for load, rate in zip(kind.loads, rates, strict=True)
    ]


def _run(
    policy: str, arrangement: Arrangement, cards: Hardware, workload: Workload, alone: Alone
) -> Run:
    return Simulation(arrangement.setup(policy, cards)).run(workload, alone)


def _mean_ttft_s(run: Run) -> float:
    found = [each.ttft_s for each in run.outcomes if each.ttft_s is not None]
    return sum(found) / len(found) if len(found) == len(run.outcomes) else inf


def _point(
    cards: Hardware,
    kind: Set,
    load: float,
    workload: Workload,
    rate: float,
    chosen: dict[str, Arrangement],
    alone: Alone,
    seed: int,
) -> Point:
    runs = {policy: _run(policy, each, cards, workload, alone) for policy, each in chosen.items()}
    for run in runs.values():
        run.seed, run.rate = seed, rate
    long_tokens = LONG_TOKENS[kind.name]
    summaries = {
        name: kept(summarise(run, objectives=Objectives(slowdown=5.0), long_tokens=long_tokens))
        for name, run in runs.items()
    }
    losses: dict[str, list[str]] = {name: [] for name in JUDGED}
    wins: dict[str, list[str]] = {name: [] for name in JUDGED}
    own = runs["sps2"]
    for name, run in runs.items():
        if run is own:
            continue
        compared = compare(own, run, names=[*JUDGED], long_tokens=long_tokens, most_shifts=0)
        for each in compared.differences:
            if each.is_distinct:
                is_better = each.change.value * JUDGED[each.name] < 0
                if not is_better:
                    wins[each.name].append(name)
                elif summaries[name]["failed"] <= summaries["sps2"]["failed"]:
                    losses[each.name].append(name)
    names = {policy: each.name for policy, each in chosen.items()}
    return Point(cards.name, kind.name, load, rate, names, summaries, losses, wins)
