"""Simulates a candidate at a rate, and stops as soon as it is sure that the SLOs are missed."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil, inf, sqrt
from random import Random
from typing import Literal, NamedTuple, get_args

from sps2.cli.simulator.decoding import Sequence as Answer
from sps2.cli.simulator.intervals import at as quantile
from sps2.cli.simulator.outcomes import Outcome, Run
from sps2.cli.simulator.planning.bounds import Bounds
from sps2.cli.simulator.planning.candidates import Candidate, Setups
from sps2.cli.simulator.planning.loads import Load
from sps2.cli.simulator.setup import Setup
from sps2.cli.simulator.simulation import Simulation
from sps2.cli.simulator.statistics import Objectives, in_order, waits_before_first
from sps2.cli.simulator.verdict import REST, State, judge
from sps2.cli.workload.requests import Workload

LOOKS = 40
"""How often a run is looked at during its arrivals."""
LONGER = 1.5
"""After the last arrival, each look comes so much later than the one before it."""
LATE_LOOKS = 30
BEYOND_CHANCE = 3.0
"""Of the requests that may miss the SLOs: so many standard deviations more."""

Stops = Literal["early", "late", "never"]
STOPS: tuple[Stops, ...] = get_args(Stops)


@dataclass(frozen=True)
class Trial:
    """A candidate at a rate.

    requests: that count: without the warm-up. met: share of them within the SLOs; of a run that
    was stopped, at most. is_stopped: it was, because too many had missed them. ttft_s, tbt_s: at
    the quantile that has to meet them. missed: share of requests that missed the `TTFT`, the `TBT`,
    or failed, by that name; of a stopped run, until then. waits_s: of those that missed the TTFT,
    before their first token, by cause. run: all of it; None of a stopped run.
    """

    candidate: Candidate
    rate: float
    requests: int
    met: float
    passes: bool
    is_stopped: bool
    state: State
    ttft_s: float
    tbt_s: float
    missed: dict[str, float] = field(default_factory=dict)
    waits_s: dict[str, float] = field(default_factory=dict)
    run: Run | None = None


class Trials:
    """Runs trials, each once; all have the same requests."""

    def __init__(
        self,
        setups: Setups,
        load: Load,
        bounds: Bounds,
        objectives: Objectives,
        attainment: float,
        seed: int = 0,
    ) -> None:
        self.load, self.bounds = load, bounds
        self.objectives, self.attainment = objectives, attainment
        self._setups, self._seed = setups, seed
        self._known: dict[tuple[Candidate, float, int], tuple[Stops, Trial]] = {}
        self.count = 0
        """Runs so far."""

    def run(
        self, candidate: Candidate, rate: float, requests: int, stops: Stops = "early"
    ) -> Trial:
        """A trial.

        Args:
            requests: how many of the workload's.
            stops: `early`: when too many have missed the SLOs; `late`: when that would be so with
                the profile's fastest times too, and beyond chance; `never`. The last two keep the
                runs that did not stop.
        """
        key = candidate, rate, requests
        known = self._known.get(key)
        if known is None or STOPS.index(stops) > STOPS.index(known[0]):
            self.count += 1
            known = self._known[key] = stops, self._tried(candidate, rate, requests, stops)
        return known[1]

    def _tried(self, candidate: Candidate, rate: float, requests: int, stops: Stops) -> Trial:
        workload = self.load.at(rate, requests)
        setup = self._setups.of(candidate)
        skipped = self.load.warm_up(len(workload.turns))
        allowed, factor = (1 - self.attainment) * (len(workload.turns) - skipped), 1.0
        if stops == "late":
            allowed += BEYOND_CHANCE * sqrt(allowed + 1)
            factor -= setup.profile.margin
        alone = self.bounds.alone(candidate)
        rules = _Rules(self.objectives, skipped, allowed + 1e-9, factor, alone)
        watched = _Watched(setup, workload, rules)
        watched.fill(self.bounds.answers(candidate, rate), self._seed)
        if stops != "never":
            watched.watch()
        run: Run | None = None
        with suppress(_HopelessError):
            run = watched.run(workload, alone)
        if run is not None:
            run.seed = self._seed
        return self._trial(candidate, rate, watched, run, stops != "early")

    def _trial(
        self, candidate: Candidate, rate: float, watched: "_Watched", run: Run | None, keeps: bool
    ) -> Trial:
        skipped = watched.rules.skipped
        count = len(watched.turns) - skipped
        state: State = judge(run).state if run else "overloaded"
        outcomes = (in_order(run) if run else watched.outcomes)[skipped:]
        if run is not None:
            run.outcomes = outcomes
        now_s = inf if run else watched.now_s
        missed: dict[str, float] = {}
        waits_s: dict[str, float] = {}
        for outcome in outcomes:
            for name in misses(outcome, self.objectives, now_s):
                missed[name] = missed.get(name, 0.0) + 1 / count
                if name == "TTFT":
                    for cause, waited in waits_before_first(outcome).items():
                        waits_s[cause] = waits_s.get(cause, 0.0) + waited
        late = sum(bool(misses(each, self.objectives, now_s)) for each in outcomes)
        met = 1 - late / count
        return Trial(
            candidate,
            rate,
            count,
            met,
            run is not None and met >= self.attainment - 1e-9 and state != "overloaded",
            run is None,
            state,
            self._quantile(outcomes, count, lambda each: each.ttft_s),
            self._quantile(outcomes, count, lambda each: 0.0 if _is_short(each) else each.tbt_s),
            missed,
            waits_s,
            run if keeps else None,
        )

    def _quantile(
        self, outcomes: list[Outcome], count: int, metric: Callable[[Outcome], float | None]
    ) -> float:
        values = [inf if (value := metric(each)) is None else value for each in outcomes]
        values += [inf] * (count - len(values))
        ordered = sorted(values)
        if ordered[-1] == inf:  # no straight line leads there
            return ordered[ceil(self.attainment * (count - 1) - 1e-9)]
        return quantile(ordered, self.attainment)


def misses(
    outcome: Outcome, objectives: Objectives, now_s: float = inf, factor: float = 1.0
) -> list[str]:
    """Which objectives a request surely misses, at some time of its run: `TTFT`, `TBT`, `error`.

    Args:
        factor: that its times are multiplied with.
    """
    found = []
    first_s = outcome.first_s
    if objectives.ttft_s is not None:
        ttft_s = (now_s if first_s is None else first_s) - outcome.arrived_s
        if ttft_s * factor > objectives.ttft_s:
            found.append("TTFT")
    if objectives.tbt_s is not None and first_s is not None and outcome.answer_tokens > 1:
        stop_s = now_s if outcome.ended_s is None else outcome.ended_s
        if (stop_s - first_s) * factor > objectives.tbt_s * (outcome.answer_tokens - 1):
            found.append("TBT")
    if outcome.error:
        return ["error"]
    if not found and now_s == inf and outcome.ended_s is None:
        found.append("error")
    return found


def _is_short(outcome: Outcome) -> bool:
    return outcome.answer_tokens < 2 and outcome.ended_s is not None


def _nothing() -> None:
    pass


class _HopelessError(Exception):
    """Too many requests have missed the SLOs."""


class _Rules(NamedTuple):
    """When a simulation ends itself.

    skipped: requests that do not count. allowed: how many others may miss the objectives. factor:
    that their times are multiplied with. alone: the TTFT of a prompt on an idle cluster.
    """

    objectives: Objectives
    skipped: int
    allowed: float
    factor: float
    alone: Callable[[int], float]


class _Watched(Simulation):
    """A simulation that ends itself when too many requests have missed the SLOs, or when the
    arrivals are over and it was overloaded."""

    def __init__(self, setup: Setup, workload: Workload, rules: _Rules) -> None:
        super().__init__(setup)
        self.turns, self.rules = workload.turns, rules
        self._alone_s = max(rules.alone(turn.prompt_tokens) for turn in workload.turns)
        self._last_s = max(turn.at_s for turn in workload.turns)
        self._gap_s = self._last_s / LOOKS or 1.0
        self._late = 0

    def fill(self, answers: float, seed: int) -> None:
        """Begin with answers that earlier requests have under way, on each shard that decodes.

        They are drawn from the workload as an observer would find them: long ones more often, and
        at any place. Their keys are attended to, but take no pages.
        """
        draw = Random(f"under way {seed}")
        turns = [turn for turn in self.turns if turn.answer_tokens > 1]
        weights = [turn.answer_tokens - 1 for turn in turns]
        for shard in self._setup.shards():
            count = int(answers) + (draw.random() < answers % 1)
            if not shard.pages or not turns:
                continue
            for turn in draw.choices(turns, weights, k=count):
                left = draw.randint(1, turn.answer_tokens - 1)
                keys = turn.prompt_tokens + turn.answer_tokens - left
                answer = Answer({shard.id: keys}, left, left, _nothing, _nothing)
                self.machines.decode(shard.id, answer)

    @property
    def outcomes(self) -> list[Outcome]:
        return self._outcomes

    @property
    def now_s(self) -> float:
        return self._clock.now_s

    def watch(self) -> None:
        """Look at intervals from now on."""
        self._clock.call_at(self.now_s + self._gap_s, self._look)

    def _look(self) -> None:
        now_s = self.now_s
        rules = self.rules
        late = sum(
            bool(misses(each, rules.objectives, now_s, rules.factor))
            for each in self._outcomes[rules.skipped :]
        )
        if late > rules.allowed:
            raise _HopelessError
        if not self._late and now_s >= self._last_s * (1 + REST) + self._alone_s:
            self._late = 1
            if judge(self._so_far()).state == "overloaded":
                raise _HopelessError
        if self._late:
            self._gap_s *= LONGER
            self._late += 1
        if self._late < LATE_LOOKS:
            self.watch()

    def _so_far(self) -> Run:
        for outcome in self._outcomes:
            outcome.alone_s = self.rules.alone(outcome.prompt_tokens)
        shards = tuple(self.machines.units)
        return Run(
            "", "", shards, "", "", "", 0.0, 0.0, 0, self._outcomes, stopped_s=self._clock.now_s
        )
