"""Which requests occupy which shards, in the fleet's members."""

from collections.abc import Iterable, Mapping

from sps2.common.messages import RequestStatus
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_state import Member
from sps2.services.scheduler.plan import Plan
from sps2.services.scheduler.request import Request, held_back_by


def enter(fleet: Fleet, request: Request, requests: Mapping[str, Request]) -> None:
    """A request that has a plan now occupies the shards that prefill it, keep its KV, and own it.

    Args:
        requests: all requests by id; one that shares a shard's prefills is not alone any more.
    """
    plan = request.plan
    assert plan is not None
    fleet.promise(request.id, plan.takes)
    request.is_alone = True
    enter_group(fleet, request, requests)
    for place in plan.placements:
        fleet.members[place.shard].held.add(request.id)
    fleet.members[plan.owner].owned.add(request.id)


def enter_group(fleet: Fleet, request: Request, requests: Mapping[str, Request]) -> None:
    """The shards of a request's plan compute its chunk."""
    plan = request.plan
    assert plan is not None
    for shard in plan.group:
        member = fleet.members[shard]
        for other in member.prefilled:
            request.is_alone = requests[other].is_alone = False
        member.prefilled[request.id] = plan.chunk.tokens
        member.given += 1


def leave_group(fleet: Fleet, request: Request) -> None:
    """The shards of a request's plan have computed its chunk."""
    for member in _present(fleet, request.plan.group if request.plan else ()):
        member.prefilled.pop(request.id, None)


def leave(fleet: Fleet, request: Request) -> None:
    """A request leaves all shards of its plan."""
    fleet.settle(request.id)
    for member in _present(fleet, request.plan.shards if request.plan else ()):
        member.leave(request.id)


def prefilled_beside(
    fleet: Fleet, plan: Plan | None, requests: Mapping[str, Request]
) -> list[Request]:
    """The prefills on the shards that prefill a plan, itself included."""
    members = _present(fleet, plan.group if plan else ())
    return [requests[id] for member in members for id in member.prefilled]


def status(
    fleet: Fleet, request: Request, requests: Mapping[str, Request], now_s: float
) -> RequestStatus:
    """The status of a request, with what holds its prefill back."""
    beside = prefilled_beside(fleet, request.plan, requests)
    return request.status(now_s, held_back_by(request, beside))


def _present(fleet: Fleet, shards: Iterable[str]) -> list[Member]:
    return [member for shard in shards if (member := fleet.members.get(shard))]
