"""What a plan is to make best, and within which limits."""

from dataclasses import dataclass
from typing import Literal, get_args

from sps2.cli.simulator.planning.candidates import Candidate
from sps2.cli.simulator.statistics import Objectives

Goal = Literal["goodput", "throughput", "cost", "power"]
GOALS: tuple[Goal, ...] = get_args(Goal)


@dataclass(frozen=True)
class Aims:
    """What a user wants.

    goal: `goodput`: the highest rate per card at which enough requests meet the SLOs (DistServe);
        `throughput`: the highest rate; `cost`, `power`: the least that serves `rate` (Splitwise).
    attainment: the share of requests that must meet the SLOs.
    rate: that is served at least; 0: any.
    budget: US dollars in an hour; watts: at most.
    """

    goal: Goal
    objectives: Objectives
    attainment: float = 0.9
    rate: float = 0.0
    budget: float | None = None
    watts: float | None = None

    @property
    def is_provisioning(self) -> bool:
        """Whether the rate is given, and the hardware is sought."""
        return self.goal in ("cost", "power")

    def worth(self, candidate: Candidate, rate: float) -> float:
        """How good a capacity is."""
        return rate / candidate.cards if self.goal == "goodput" else rate

    def needed(self, candidate: Candidate, worth: float) -> float:
        """The rate that has some worth."""
        return worth * candidate.cards if self.goal == "goodput" else worth

    def expense(self, candidate: Candidate) -> float:
        """What provisioning makes least."""
        found = candidate.watts if self.goal == "power" else candidate.price
        return found or 0.0

    def over_budget(self, candidate: Candidate) -> str:
        """Why a candidate costs too much; empty if it does not."""
        if self.budget is not None and (candidate.price or 0.0) > self.budget:
            return f"{candidate.price:,.2f} dollars an hour, over {self.budget:,.2f}"
        if self.watts is not None and (candidate.watts or 0.0) > self.watts:
            return f"{candidate.watts:,.0f} W, over {self.watts:,.0f} W"
        return ""
