"""A whole plan: what to choose, why, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from sps2.cli.simulator.planning.bounds import Bounds
from sps2.cli.simulator.planning.candidates import Candidate, Pool, Setups, shapes, variants
from sps2.cli.simulator.planning.capacity import Capacity
from sps2.cli.simulator.planning.differences import Apart, tell_apart
from sps2.cli.simulator.planning.goals import Aims
from sps2.cli.simulator.planning.loads import Load
from sps2.cli.simulator.planning.reasons import Miss, nearest
from sps2.cli.simulator.planning.search import LAST, How, Point, Report, Search
from sps2.cli.simulator.planning.trials import Trials
from sps2.common.errors import Invalid

USUAL_SPAN = 1024
"""Where a model does not fit, so that nothing can say what is usual."""


@dataclass(frozen=True)
class Plan:
    """What was found.

    found: candidates that do what is wanted, the best one first. apart: whether the first two can
    be told apart. miss: if there are none. points: all that were judged; `runs`: simulations.
    """

    aims: Aims
    trials: Trials
    found: Sequence[Capacity]
    apart: Apart | None
    miss: Miss | None
    points: Sequence[Point]
    runs: int

    @property
    def judged(self) -> dict[How, int]:
        """How many points were judged how."""
        ways = [point.how for point in self.points]
        return {way: ways.count(way) for way in dict.fromkeys(ways)}


def make_plan(
    setups: Setups,
    pools: Sequence[Pool],
    load: Load,
    aims: Aims,
    *,
    degrees: Sequence[int] = (),
    policies: Sequence[str] = ("sps2",),
    most: int = 500,
    seed: int = 0,
    report: Report = lambda what, share: None,
) -> Plan:
    """Make a plan; equal arguments make the same one.

    Args:
        pools: cards of one kind each; a candidate takes its shards from one of them.
        degrees: TP degrees to try; empty: all that the model can be split into.
        policies: the first one for all shapes, the others for the best of them.
        most: how many candidates are judged.

    Raises:
        Invalid: the cards are too few for any cluster.
    """
    bounds = Bounds(setups, load, aims.objectives, aims.attainment)
    trials = Trials(setups, load, bounds, aims.objectives, aims.attainment, seed)
    every = [*chain.from_iterable(_shapes(setups, pool, degrees, policies[0]) for pool in pools)]
    if not every:
        cards = ", ".join(f"{pool.cards} x {pool.name}" for pool in pools)
        tried = " or ".join(map(str, degrees))
        raise Invalid(
            f"{cards} are too few: with TP {tried}, a prefill and a decode shard take "
            f"{2 * min(degrees, default=1)} cards, and mixed shards have no TP"
        )

    def others(candidate: Candidate) -> list[Candidate]:
        return [*variants(candidate, load.longest, policies[1:])]

    search = Search(trials, aims, every, others, most, report)
    found = search.run()
    apart = None
    if len(found) > 1:
        requests = max(search.length(each.candidate, LAST) for each in found[:2])
        apart = tell_apart(trials, aims, found[0], found[1], requests)
    miss = None if found else nearest(search)
    points = (miss and miss.points) or [*search.points.values()]
    return Plan(aims, trials, found, apart, miss, points, trials.count)


def _shapes(setups: Setups, pool: Pool, degrees: Sequence[int], policy: str) -> list[Candidate]:
    possible = setups.degrees(pool)
    if odd := [tp for tp in degrees if tp not in possible and tp <= pool.cards]:
        raise Invalid(
            f"TP {odd[0]} is not possible on {pool.cards} x {pool.name}; possible are "
            f"{', '.join(map(str, possible))}"
        )
    found: list[Candidate] = []
    for tp in degrees or possible:
        try:
            span = setups.usual(pool, tp).config.scheduler.prefill_span_tokens
        except Invalid:
            span = USUAL_SPAN
        found += shapes(pool, [tp], span, policy)
    return found
