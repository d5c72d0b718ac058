"""Which requests give their pages up: to an answer that grows, or because their shard drains."""

from collections import Counter
from collections.abc import Mapping, Sequence

from sps2.services.scheduler.actions import Preempt
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.request import Request


def preempt(request: Request) -> Preempt:
    """Stop a request, which resumes later."""
    request.is_preempted = True
    return Preempt(request.id)


def starve(
    request: Request, pages: int, requests: Mapping[str, Request], fleet: Fleet
) -> list[Request]:
    """Keep free pages of an owner for an answer that grows; returns what has to give way to it."""
    assert request.plan is not None
    owner, request.has_grown = request.plan.owner, True
    fleet.settle(request.id)
    fleet.promise(request.id, {owner: pages})
    last = gives_way(request, [other for other in requests.values() if other.uses(owner)])
    return [] if last is None else [last]


def to_move(shard: str, requests: Mapping[str, Request]) -> list[Request]:
    """The requests of a shard that can be told to go on elsewhere, and were not yet."""
    return [
        request
        for request in requests.values()
        if request.needs(shard) and request.stage != "reserving" and not request.is_preempted
    ]


def gives_way(starving: Request, there: Sequence[Request]) -> Request | None:
    """Which request is to give its pages up to one that finds none; None to wait for others.

    It is one of the caller that has the most requests there: of the lowest priority, without an
    answer before those that resumed one, the last that came. So the request that is first in this
    order is never preempted, and all end. One that was preempted before is not as long as it has
    not used up the room that it got then.

    Args:
        there: those that use the same shard, `starving` included.
    """
    if any(request.is_preempted for request in there):
        return None
    others = [
        request for request in there if request.stage != "reserving" and not request.is_protected
    ]
    callers = Counter(request.work.caller for request in others)
    last = max(
        others,
        key=lambda request: (callers[request.work.caller], *request.rank),
        default=None,
    )
    return None if last is starving and len(others) < len(there) else last
