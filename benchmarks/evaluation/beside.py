"""Short requests beside a prompt of 600,000 tokens."""

from typing import Any

import msgspec

from evaluation.settings import APART, ARRANGEMENTS, HARDWARE, MIXED
from sps2.cli.simulator.simulation import Simulation
from sps2.cli.simulator.statistics import summarise
from sps2.cli.workload import sources
from sps2.cli.workload.requests import Turn, Workload

LONG = Turn(20.0, 600_000, 100)
RATES = (2.0, 5.0)
SECONDS = 120.0
QUARTER, HALF = APART
SYSTEMS = (
    ("sps2", QUARTER),
    ("sps2", HALF),
    ("sps2", MIXED),
    ("fcfs", HALF),
    ("sarathi", ARRANGEMENTS["sarathi"][0]),
)


def rows(seed: int) -> list[dict[str, Any]]:
    """For each kind of 8 cards, system and rate: the long prompt alone and beside short ones, and
    the short ones that came while it was prefilled."""
    found = []
    for cards in HARDWARE[:2]:
        for policy, arrangement in SYSTEMS:
            setup = arrangement.setup(policy, cards)
            alone = Simulation(setup).run(Workload("long", [LONG])).outcomes[0]
            for rate in RATES:
                short = sources.find(
                    "azure-conv", limit=round(rate * SECONDS), rate=rate, cv=1.0, seed=seed
                )
                turns = sorted([*short.turns, LONG], key=lambda turn: turn.at_s)
                run = Simulation(setup).run(Workload("beside", turns))
                long = next(each for each in run.outcomes if each.prompt_tokens == 600_000)
                if long.first_s is None or alone.ttft_s is None:
                    continue
                until_s = long.first_s
                run.outcomes = [
                    each
                    for each in run.outcomes
                    if each is not long and LONG.at_s <= each.arrived_s <= until_s
                ]
                summary = summarise(run)
                found.append(
                    {
                        "hardware": cards.name,
                        "system": f"{policy}, {arrangement.name}",
                        "rate": rate,
                        "short": len(run.outcomes),
                        "short_ttft_s": msgspec.to_builtins(summary.ttft_s.all),
                        "long_alone_s": alone.ttft_s,
                        "long_beside_s": long.ttft_s,
                    }
                )
    return found
