"""Pairs of shards that cannot reach each other: for a while no plan has both."""

from collections import Counter
from collections.abc import Collection, Sequence

from sps2.common.messages import CachedRun
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Plan, Wait, Work
from sps2.services.scheduler.policy import Policy

APART_S = 30.0
"""After the loss of a link; whoever is planned then finds out whether it is back."""


def planned(policy: Policy, work: Work, cached: Sequence[CachedRun], fleet: Fleet) -> Plan | Wait:
    """What the policy says of a fleet in which all that it plans with can reach each other.

    Of a pair the shard is left out that lacks links to most of the plan, or is easiest to replace.

    Raises:
        Invalid: as the policy does.
    """
    plan = policy.plan(work, cached, fleet)
    apart: list[str] = []
    while isinstance(plan, Plan) and (pairs := fleet.pairs_apart(_shards(plan))):
        lost = Counter(shard for pair in pairs for shard in sorted(pair))
        roles = {shard: len(fleet.of(fleet.members[shard].shard.role)) for shard in lost}
        left_out = max(lost, key=lambda shard: (lost[shard], roles[shard]))
        apart = sorted(next(pair for pair in pairs if left_out in pair))
        fleet = fleet.without(left_out)
        plan = policy.plan(work, cached, fleet)
    if apart and isinstance(plan, Wait) and plan.cause == "absent":
        why = f"{' and '.join(apart)} cannot reach each other on the data plane: {plan.reason}"
        return Wait("absent", why)
    return plan


def _shards(plan: Plan) -> Collection[str]:
    return {*plan.group, *(place.shard for place in plan.placements)}
