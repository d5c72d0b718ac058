"""Keeps pairs of shards that cannot reach each other out of the same plan, for a while."""

from collections import Counter
from collections.abc import Callable

from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Plan, Wait

APART_S = 30.0
"""How long two shards count as unable to reach each other; later plans may try the link again."""


def connected(plan_on: Callable[[Fleet], Plan | Wait], fleet: Fleet) -> Plan | Wait:
    """A plan in which all shards can reach each other, or why there is none yet.

    As long as a plan has shards that cannot reach each other, the one with the most missing links
    is left out and the plan is made again. Of several, it is one whose role has the most shards.
    """
    plan = plan_on(fleet)
    apart: list[str] = []
    while isinstance(plan, Plan) and (pairs := fleet.pairs_apart(plan.shards)):
        lost = Counter(shard for pair in pairs for shard in sorted(pair))
        roles = {shard: len(fleet.of(fleet.members[shard].shard.role)) for shard in lost}
        left_out = max(lost, key=lambda shard: (lost[shard], roles[shard]))
        apart = sorted(next(pair for pair in pairs if left_out in pair))
        fleet = fleet.without(left_out)
        plan = plan_on(fleet)
    if apart and isinstance(plan, Wait) and plan.cause == "absent":
        why = f"{' and '.join(apart)} cannot reach each other on the data plane: {plan.reason}"
        return Wait("absent", why)
    return plan
