"""Simulates every system on every set, and says which can be told apart."""

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from evaluation.settings import HARDWARE, SETS, SYSTEMS, Hardware, Set
from sps2.cli.simulator.alone import Alone
from sps2.cli.simulator.comparison import compare
from sps2.cli.simulator.outcomes import Run
from sps2.cli.simulator.simulation import Simulation
from sps2.cli.simulator.statistics import Objectives, summarise

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
    """All systems at one load of a set. summaries: by system, as `statistics.Summary`.

    losses: figures at which a system can be told from `sps2`, and is better: by name, the systems.
    """

    hardware: str
    set: str
    load: float
    rate: float
    summaries: dict[str, Any]
    losses: dict[str, list[str]]
    wins: dict[str, list[str]]


def points(
    hardware: Sequence[Hardware], sets: Sequence[Set], traces: Path | None, seed: int
) -> Iterator[Point]:
    """Simulate every combination, on all cores."""
    tasks = [
        (HARDWARE.index(cards), SETS.index(each), load, traces, seed)
        for cards in hardware
        for each in sets
        for load in each.loads
    ]
    with multiprocessing.get_context("spawn").Pool() as pool:
        for number, point in enumerate(pool.imap(_point, tasks), 1):
            done = f"{number}/{len(tasks)}  {point.hardware}, set {point.set}, load {point.load:g}"
            print(done, file=sys.stderr, flush=True)
            yield point


def _point(task: tuple[int, int, float, Path | None, int]) -> Point:
    place, number, load, traces, seed = task
    cards, kind = HARDWARE[place], SETS[number]
    rate = load if kind.is_closed else load * cards.most_rate(kind.make(None, seed, traces))
    workload = kind.make(rate, seed, traces)
    alone, runs = Alone(cards.mixed), dict[str, Run]()
    for system in SYSTEMS:
        run = Simulation(system.setup(cards)).run(workload, alone)
        run.policy, run.seed, run.rate = system.name, seed, rate
        runs[system.name] = run
    long_tokens = LONG_TOKENS[kind.name]
    summaries = {
        name: msgspec.to_builtins(
            summarise(run, objectives=Objectives(slowdown=5.0), long_tokens=long_tokens)
        )
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
                (losses if is_better else wins)[each.name].append(name)
    return Point(cards.name, kind.name, load, rate, summaries, losses, wins)
