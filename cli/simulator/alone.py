"""The time to first token of a request that has the cluster to itself."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from math import exp, floor, log

import msgspec

from sps2.cli.simulator.setup import Setup
from sps2.cli.simulator.simulation import Simulation
from sps2.cli.workload.requests import Turn, Workload

EXACT = 500
"""Up to so many different lengths are all simulated."""
APART = log(1.05)
"""Of more, lengths this far apart are simulated, and straight lines join them."""


class Alone:
    """TTFT on an idle cluster by length of the prompt, with nothing cached, under `sps2`.

    The policy is the same for all runs, so that their slowdowns can be compared.

    Args:
        lengths: of the prompts that will be asked for.
    """

    def __init__(self, setup: Setup, lengths: Iterable[int] = ()) -> None:
        config = setup.config
        scheduler = msgspec.structs.replace(config.scheduler, policy="sps2")
        config = msgspec.structs.replace(config, scheduler=scheduler)
        self._setup = replace(setup, config=config)
        self._at = cache(self._simulated)
        self._is_exact = len({*lengths}) <= EXACT

    def __call__(self, tokens: int) -> float:
        """Seconds for a prompt of some tokens."""
        if self._is_exact or tokens < 1 / APART:
            return self._at(tokens)
        step = floor(log(tokens) / APART)
        low, high = (round(exp(each * APART)) for each in (step, step + 1))
        low_s, high_s = self._at(low), self._at(high)
        return low_s + (high_s - low_s) * (tokens - low) / max(1, high - low)

    def _simulated(self, tokens: int) -> float:
        workload = Workload("alone", [Turn(0.0, tokens, 1)])
        outcome = Simulation(self._setup).run(workload).outcomes[0]
        return outcome.ttft_s or 0.0
