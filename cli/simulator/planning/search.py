"""Finds the best candidates: by formulas first, then by ever longer simulations of ever fewer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Literal, NamedTuple

from sps2.cli.simulator.planning.bounds import TINY, Bound, Limit
from sps2.cli.simulator.planning.candidates import Candidate
from sps2.cli.simulator.planning.capacity import Capacity, climb, measure
from sps2.cli.simulator.planning.goals import Aims
from sps2.cli.simulator.planning.trials import Trial, Trials

How = Literal["screened", "simulated", "refined", "measured"]
Report = Callable[[str, float], None]

CLOSE, CLOSER = 0.85, 0.92
"""A candidate stays if it has this share of the best one's worth, in trials of either length."""
REFINED, MEASURED, LEAST_MEASURED = 10, 3, 2
"""How many candidates get the longer trials, and the longest ones with intervals."""
ALIKE = 2
"""Of each shape among those that are refined; of those that are measured, each has its own."""
NEAR = 0.03
"""In short trials, a candidate may be so far below the attainment."""


class Stage(NamedTuple):
    """Trials of one length.

    spans: how often the TTFT that is allowed, in which queues grow; least, most: of their requests.
    tolerance: of a capacity.
    """

    spans: float
    least: int
    most: int
    tolerance: float


FIRST = Stage(4, 100, 200, 0.1)
SECOND = Stage(8, 200, 400, 0.06)
LAST = Stage(16, 400, 1_000_000, 0.04)
"""Of all candidates, of those that are left after that, and of the best."""
LEAP = 1.3
"""A candidate that can compute so many times what it must is tried at its bound first."""
VARIED = 5
"""Shapes whose variants are tried."""
VARIED_AT_LEVEL = 3
MORE_LEVELS = 2
"""How many dearer levels are tried after the first one that is enough, for a runner-up."""


@dataclass
class Point:
    """A candidate that was judged.

    how: `screened`: by formulas; `simulated`, `refined`, `measured`: in the `FIRST`, `SECOND` or
    `LAST` stage. limit, reason: why it was left out; empty if it was not. rate: the highest one at
    which it met the SLOs; 0 if none is known. trial: the one that says why.
    """

    candidate: Candidate
    bound: Bound
    how: How = "screened"
    limit: Limit = ""
    reason: str = ""
    rate: float = 0.0
    trial: Trial | None = None


class Search:
    """One search.

    Args:
        shapes: candidates with the usual settings, one of each shape.
        variants: the others of a shape.
        most: how many candidates may be judged.
    """

    def __init__(
        self,
        trials: Trials,
        aims: Aims,
        shapes: Sequence[Candidate],
        variants: Callable[[Candidate], Iterable[Candidate]],
        most: int,
        report: Report = lambda what, share: None,
    ) -> None:
        self.trials, self.aims = trials, aims
        self._variants, self._most = variants, most
        self._report = report
        self._all = shapes
        self.points: dict[Candidate, Point] = {}
        """All that were judged."""
        self._shapes = self._chosen(shapes)

    def run(self) -> list[Capacity]:
        """The candidates that do what is wanted, the best one first; empty if none does."""
        return self._cheapest() if self.aims.is_provisioning else self._best()

    def length(self, candidate: Candidate, stage: Stage) -> int:
        """Requests of a trial: enough for queues to grow if a candidate is overloaded."""
        load, aims = self.trials.load, self.aims
        rate = aims.rate if aims.is_provisioning else self._bound(candidate).likely
        span_s = stage.spans * (aims.objectives.ttft_s or 0.0)
        needed = span_s * rate * len(load.turns) / load.starts
        return min(max(round(needed), stage.least), stage.most, len(load.turns))

    def again(self, aims: Aims) -> "Search":
        """A search in the same candidates for something else."""
        return Search(
            self.trials,
            aims,
            self._all,
            self._variants,
            self._most,
            self._report,
        )

    def _best(self) -> list[Capacity]:
        aims = self.aims
        order = sorted(self._shapes, key=lambda each: -aims.worth(each, self._bound(each).likely))
        self._race(order, FIRST, CLOSE, 1.6)
        self._race(self._others(self._ranked()), FIRST, CLOSER, 1.12)
        self._race(self._with_settings_of(self._ranked(), order), FIRST, CLOSER, 1.12)
        near = self._few(self._ranked(), REFINED)
        guesses = {each: self.points[each].rate for each in near}
        self._race(near, SECOND, CLOSER, 1.12)
        ranked = [each for each in self._ranked() if each in near]
        kept = self._few(ranked, MEASURED, 1)
        if len(kept) < LEAST_MEASURED:
            kept = self._few([*ranked, *near], LEAST_MEASURED, 1)
        for candidate in kept:
            self.points[candidate].rate = self.points[candidate].rate or guesses[candidate]
        found = [self._measured(each, index / len(kept)) for index, each in enumerate(kept)]
        found = [each for each in found if each.rate.value >= max(aims.rate, TINY)]
        return sorted(found, key=lambda each: -aims.worth(each.candidate, each.rate.value))

    def _cheapest(self) -> list[Capacity]:
        """Level by level of expense, from the least."""
        aims, found = self.aims, list[Capacity]()
        able = [each for each in self._shapes if self._is_able(each)]
        levels: dict[float, list[Candidate]] = {}
        for candidate in able:
            levels.setdefault(round(aims.expense(candidate), 6), []).append(candidate)
        more = MORE_LEVELS
        for number, expense in enumerate(sorted(levels)):
            if found and (not more or (len(found) > 1 and _is_sure(found, aims))):
                for candidate in levels[expense]:
                    self._skip(candidate, "worth", "what costs less is enough")
                continue
            more -= bool(found)
            self._report("levels of expense", number / len(levels))
            level = levels[expense]
            near = self._tested(level, FIRST)
            likely = sorted(level, key=lambda each: -self._bound(each).likely)
            shapes = [*dict.fromkeys([*_by_share(near), *likely])][:VARIED_AT_LEVEL]
            near += self._tested(self._others(shapes), FIRST)
            kept = self._few(_by_share(near), REFINED)
            kept = self._few(_by_share(self._tested(kept, SECOND)), MEASURED, 1)
            kept = kept[:1] if found else kept
            capacities = [self._measured(each, number / len(levels)) for each in kept]
            capacities = [each for each in capacities if each.rate.value >= aims.rate]
            found += sorted(capacities, key=lambda each: -each.rate.value)
        return found

    def _race(
        self,
        candidates: Iterable[Candidate],
        stage: Stage,
        close: float,
        growth: float,
    ) -> None:
        """Find the capacities of those that come close to the best one."""
        aims, trials = self.aims, self.trials
        best = 0.0
        if stage is FIRST:
            best = max((self._worth(each) for each in self.points.values()), default=0.0)
        for candidate in candidates:
            if not self._is_able(candidate):
                continue
            point = self.points[candidate]
            needed = max(aims.rate, close * aims.needed(candidate, best))
            if point.bound.most < needed:
                point.limit = "worth"
                point.reason = f"its shards cannot compute {needed:.3g} {trials.load.unit}"
                continue
            self._report(candidate.in_words, self._share(stage))
            tried: list[Trial] = []
            run = partial(trials.run, candidate, requests=self.length(candidate, stage))

            def passes(
                rate: float, run: Callable[[float], Trial] = run, to: list[Trial] = tried
            ) -> bool:
                to.append(run(rate))
                return to[-1].passes

            point.how = "simulated" if stage is FIRST else "refined"
            low, most = 0.0, point.bound.most
            if not needed:
                low, _ = climb(passes, point.bound.likely / 2, most, stage.tolerance, growth)
            elif most <= needed * LEAP and passes(most):
                low = most
            elif passes(needed):
                low, _ = climb(passes, needed, most, stage.tolerance, growth)
            failed = [each for each in tried if not each.passes]
            point.trial = min(failed, key=lambda each: each.rate, default=None)
            point.rate = low
            if not low and point.trial:
                self._note(point, point.trial)
            best = max(best, self._worth(point))

    def _tested(self, candidates: Iterable[Candidate], stage: Stage) -> list[Trial]:
        """Trials at the wanted rate: those that pass, or nearly so."""
        near = []
        for candidate in candidates:
            if not self._is_able(candidate):
                continue
            point = self.points[candidate]
            point.how = "simulated" if stage is FIRST else "refined"
            requests = self.length(candidate, stage)
            point.trial = trial = self.trials.run(candidate, self.aims.rate, requests)
            if trial.passes:
                point.rate = trial.rate
            if trial.passes or (not trial.is_stopped and trial.met > trial_least(self.trials)):
                near.append(trial)
            else:
                self._note(point, trial)
        return near

    def _measured(self, candidate: Candidate, share: float) -> Capacity:
        self._report(candidate.in_words, 0.85 + 0.15 * share)
        point = self.points[candidate]
        guess = self.aims.rate if self.aims.is_provisioning else point.rate
        requests = self.length(candidate, LAST)
        found = measure(self.trials, candidate, guess, requests, LAST.tolerance)
        point.how, point.rate = "measured", found.rate.value
        point.trial = found.failing or found.passing
        if found.rate.value < self.aims.rate and point.trial:
            self._note(point, point.trial)
        return found

    def _chosen(self, shapes: Sequence[Candidate]) -> list[Candidate]:
        """At most half of all candidates: those of which formulas expect most."""
        able = [each for each in shapes if self._is_able(each)]
        able.sort(key=lambda each: -self.aims.worth(each, self._bound(each).likely))
        kept = able[: max(1, self._most // 2)]
        for candidate in able[len(kept) :]:
            self._skip(candidate, "worth", "others of this plan can compute more")
        return kept

    def _is_able(self, candidate: Candidate) -> bool:
        """Whether formulas leave a chance; otherwise the point says why not."""
        point = self._point(candidate)
        aims, bound = self.aims, point.bound
        if over := aims.over_budget(candidate):
            point.limit, point.reason = "budget", over
        elif bound.limit:
            point.limit, point.reason = bound.limit, bound.reason
        elif bound.most < aims.rate:
            point.limit = "load"
            point.reason = (
                f"its shards cannot compute more than {bound.most:.3g} {self.trials.load.unit}"
            )
        return not point.limit or point.how != "screened"

    def _point(self, candidate: Candidate) -> Point:
        if candidate not in self.points:
            self.points[candidate] = Point(candidate, self.trials.bounds.of(candidate))
        return self.points[candidate]

    def _bound(self, candidate: Candidate) -> Bound:
        return self._point(candidate).bound

    def _skip(self, candidate: Candidate, limit: Limit, reason: str) -> None:
        point = self._point(candidate)
        point.limit, point.reason = limit, reason

    def _others(self, ranked: Sequence[Candidate]) -> Iterable[Candidate]:
        """Variants of the best shapes, as many as may still be judged."""
        shapes = dict.fromkeys(each.shape for each in ranked)
        bases = {each.shape: each for each in self._shapes}
        for shape in [*shapes][:VARIED]:
            for candidate in self._variants(bases[shape]):
                if len(self.points) >= self._most:
                    return
                if candidate not in self.points:
                    yield candidate

    def _with_settings_of(
        self, ranked: Sequence[Candidate], shapes: Sequence[Candidate]
    ) -> Iterable[Candidate]:
        """Other shapes with the settings of the best candidate."""
        for shape in shapes if ranked else ():
            made = shape.with_settings_of(ranked[0])
            if made not in self.points and len(self.points) < self._most:
                yield made

    def _ranked(self) -> list[Candidate]:
        """Candidates with a capacity, the best one first."""
        able = [each for each in self.points.values() if each.rate]
        return [each.candidate for each in sorted(able, key=lambda each: -self._worth(each))]

    def _few(self, ranked: Sequence[Candidate], most: int, alike: int = ALIKE) -> list[Candidate]:
        """The first candidates, of which some are mixed and some are not, if there are such."""
        kept: list[Candidate] = []
        for candidate in ranked:
            same = sum(each.shape == candidate.shape for each in kept)
            if same < alike and len(kept) < most:
                kept.append(candidate)
        kinds = {bool(each.mixed) for each in kept}
        others = [each for each in ranked if bool(each.mixed) not in kinds]
        if others and len(kept) > 1:
            kept[-1] = others[0]
        return kept

    def _worth(self, point: Point) -> float:
        return self.aims.worth(point.candidate, point.rate)

    def _share(self, stage: Stage) -> float:
        judged = sum(each.how != "screened" for each in self.points.values())
        return 0.7 * min(1.0, judged / self._most) if stage is FIRST else 0.75

    def _note(self, point: Point, trial: Trial) -> None:
        names: dict[str, Limit] = {"TTFT": "TTFT", "TBT": "TBT"}
        worst = max(trial.missed, key=lambda each: trial.missed[each], default="")
        point.limit = names.get(worst, "load")
        at_most = "at most " if trial.is_stopped else ""
        point.reason = (
            f"at {trial.rate:.3g} {self.trials.load.unit}, {at_most}{trial.met:.1%} of "
            f"{trial.requests} requests were within the SLOs"
        )


def trial_least(trials: Trials) -> float:
    """The share within the SLOs that a short trial needs at least."""
    return trials.attainment - NEAR


def _by_share(near: Sequence[Trial]) -> list[Candidate]:
    ordered = sorted(near, key=lambda each: (not each.passes, -each.met))
    return [each.candidate for each in ordered]


def _is_sure(found: Sequence[Capacity], aims: Aims) -> bool:
    return any(each.rate.low >= aims.rate for each in found)


def excess(point: Point, aims: Aims) -> float:
    """By how much a candidate exceeds an SLO on a nearly idle cluster; infinite if not by one."""
    if point.bound.limit in ("TTFT", "TBT"):
        return point.bound.excess
    if point.trial is None or point.limit in ("budget", "memory"):
        return inf
    pairs = (
        (aims.objectives.ttft_s, point.trial.ttft_s),
        (aims.objectives.tbt_s, point.trial.tbt_s),
    )
    return max((value / limit for limit, value in pairs if limit), default=inf)
