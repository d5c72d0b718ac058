"""Why a candidate serves no more, and what comes nearest if none serves what is wanted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, isfinite

from sps2.cli.simulator.comparison import in_words
from sps2.cli.simulator.planning.capacity import Capacity
from sps2.cli.simulator.planning.goals import Aims
from sps2.cli.simulator.planning.search import LAST, Point, Search, excess
from sps2.cli.simulator.planning.trials import Trial, Trials

SAFE = 0.95
"""Of a capacity: a plan for that rate, which has other arrivals, finds it again."""
NOTABLE = 0.1
"""Of all misses: a second SLO with fewer is not named."""


@dataclass(frozen=True)
class Miss:
    """The candidate that comes nearest to what is wanted.

    by: how far it is from that. helps: what would make it do. points: all that were judged to find
    it, if there was a search of its own.
    """

    point: Point
    by: str
    helps: Sequence[str]
    points: Sequence[Point] = ()


def binding(capacity: Capacity, trials: Trials) -> str:
    """Which limit keeps a candidate from a higher rate, in a sentence."""
    unit = trials.load.unit
    if capacity.is_bounded:
        return f"load binds: its shards cannot compute more than {capacity.rate.value:.3g} {unit}"
    if capacity.failing is None:
        return "nothing binds at the rates that were tried"
    return of_trial(capacity.failing, trials)


def of_trial(trial: Trial, trials: Trials) -> str:
    """Why a trial does not pass."""
    where = f"at {trial.rate:.3g} {trials.load.unit}"
    missed = sorted(trial.missed.items(), key=lambda each: -each[1])
    if trial.state == "overloaded" and not trial.is_stopped and trial.met >= trials.attainment:
        return f"load binds: {where}, requests without a first token become ever more"
    if not missed:
        return f"load binds: {where}, it does not keep up"
    total = sum(share for _, share in missed)
    named = [(name, share) for name, share in missed if share >= NOTABLE * total]
    causes = sorted(trial.waits_s.items(), key=lambda each: -each[1])
    cause = causes[0][0] if causes else ""
    first = named[0][0]
    if first == "error":
        return f"memory binds: {where}, {named[0][1]:.1%} of the requests failed or did not end"
    binds = "memory (room for KV)" if first == "TTFT" and cause == "room" else first
    stopped = " or more" if trial.is_stopped else ""
    parts = " and ".join(f"{share:.1%}{stopped} miss the {name}" for name, share in named)
    why = f"; most of the wait is {in_words(cause)}" if first == "TTFT" and cause else ""
    return f"{binds} binds: {where}, {parts}{why}"


def nearest(search: Search) -> Miss:
    """What comes nearest, if a search has found nothing."""
    points = [*search.points.values()]
    aims = search.aims
    affordable = [each for each in points if each.limit != "budget"]
    if not affordable:
        return _over_budget(points, aims)
    if aims.rate and any(each.bound.most for each in affordable):
        easier = search.again(replace(aims, goal="throughput", rate=0.0))
        if found := easier.run():
            return _too_slow(found[0], easier, aims)
        affordable = [*easier.points.values()]
    return _beyond_slos(affordable, aims)


def _over_budget(points: Sequence[Point], aims: Aims) -> Miss:
    cheapest = min(points, key=lambda each: (each.candidate.price or 0, each.candidate.watts or 0))
    return Miss(cheapest, f"it takes {cheapest.reason}", ["a larger budget"])


def _too_slow(found: Capacity, search: Search, aims: Aims) -> Miss:
    """Enough requests meet the SLOs, but at a lower rate only."""
    trials = search.trials
    unit, rate = trials.load.unit, found.rate
    short = 1 - rate.value / aims.rate
    by = (
        f"it serves {rate.value:.3g} {unit} ({rate.low:.3g} to {rate.high:.3g}) within the SLOs, "
        f"{short:.0%} less than {aims.rate:.3g}; {binding(found, trials)}"
    )
    candidate = found.candidate
    cards = ceil(candidate.cards * aims.rate / rate.value)
    helps = [
        f"--rate {rate.value * SAFE:.3g}",
        f"about {cards} cards instead of {candidate.cards}, if capacity grows with their number",
    ]
    trial = trials.run(candidate, aims.rate, search.length(candidate, LAST), "never")
    loose = []
    for name, limit, value in (
        ("ttft", aims.objectives.ttft_s, trial.ttft_s),
        ("tbt", aims.objectives.tbt_s, trial.tbt_s),
    ):
        if limit is not None and value > limit:
            loose.append((f"--{name}-ms {ceil(value * 1000)}", value))
    if loose and trial.state != "overloaded" and all(isfinite(value) for _, value in loose):
        helps.append(" ".join(flag for flag, _ in loose) + ", which it meets at that rate")
    if trial.state != "overloaded":
        helps.append(f"--attainment {int(trial.met * 100) / 100:g}, which it reaches at that rate")
    return Miss(search.points[candidate], by, helps, [*search.points.values()])


def _beyond_slos(points: Sequence[Point], aims: Aims) -> Miss:
    """No rate is low enough."""
    near = min(points, key=lambda each: excess(each, aims))
    over = excess(near, aims)
    if over == inf:
        fits = min(points, key=lambda each: each.bound.excess or inf)
        helps = ["a card with more memory, more cards, or a higher TP degree"]
        return Miss(fits, fits.reason or "no rate that was tried is low enough", helps)
    trial = near.trial
    helps = []
    for name, limit, bound_s, trial_s in (
        ("TTFT", aims.objectives.ttft_s, near.bound.ttft_s, trial.ttft_s if trial else 0.0),
        ("TBT", aims.objectives.tbt_s, near.bound.tbt_s, trial.tbt_s if trial else 0.0),
    ):
        value = max(bound_s, trial_s)
        if limit is None or value <= limit:
            continue
        if isfinite(value):
            helps.append(f"--{name.lower()}-ms {ceil(value * 1000)} or more")
        helps.append(
            "more prefill shards, so that prompts have a higher SP degree; or a faster card"
            if name == "TTFT"
            else "a higher TP degree, or a card with a faster memory"
        )
    if near.bound.limit:
        return Miss(near, near.reason, helps)
    by = f"even at {trial.rate:.3g} per second, " if trial else ""
    return Miss(near, f"{by}it exceeds an SLO by {over - 1:.0%}", helps)
