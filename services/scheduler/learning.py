"""What the scheduler learns of its shards and links."""

from collections.abc import Sequence

from sps2.services.scheduler import probing
from sps2.services.scheduler.events import Computed, Measured, Moved
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_state import Member
from sps2.services.scheduler.links import Path
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.speeds import part_of

CACHED_SHARE = 8
"""Chunks behind more tokens than they have, over this, are not learned from: who attends to those
depends on where they are kept."""
LEAST_S = 0.05
"""A transfer that took less, in seconds, says nothing about a link."""
NOTICED = 4
"""Nor does one that took less than the group's arithmetic over this: it may have waited for a core,
and no prompt waits for such links."""


def learn(fleet: Fleet, request: Request | None, event: Computed, now_s: float) -> None:
    """A request's chunk was computed: learn how fast its shards and their links are."""
    longest_s = max(event.seconds, default=0.0)
    if fleet.measures.links:
        _learn_links(fleet, event.moved, longest_s, now_s)
    if request is not None:
        moving_s = max((moved.seconds for moved in event.moved), default=0.0)
        _learn_speeds(fleet, request, event.seconds, max(longest_s, moving_s), now_s)


def learn_measures(fleet: Fleet, event: Measured, now_s: float) -> None:
    """A shard has measured itself and its link, unless it could not."""
    found = event.measures
    if found is not None and {event.shard, event.partner} <= fleet.members.keys():
        is_quiet = all(each.is_idle for each in fleet.beside(fleet.members[event.shard]))
        if found.gflops and fleet.measures.speeds and is_quiet:
            fleet.speeds.claim(event.shard, found.gflops, now_s)
        if fleet.measures.links:
            sent, received = found.sent_gbit, found.received_gbit
            fleet.links.probed(event.shard, event.partner, Path(sent, found.latency_s, now_s))
            fleet.links.probed(event.partner, event.shard, Path(received, found.latency_s, now_s))
    probing.schedule(fleet, event.shard, now_s)


def _learn_links(fleet: Fleet, moved: Sequence[Moved], longest_s: float, now_s: float) -> None:
    """Learn from what a group has received.

    What a shard sends to several others at once shares its link: only it knows what else it sent,
    so its link counts as that much faster.
    """
    slow = []
    moved = [each for each in moved if {each.source, each.target} <= fleet.members.keys()]
    for each in moved:
        others = sum(other.source == each.source for other in moved)
        gbit = others * each.nbytes * 8e-9 / max(each.seconds, 1e-6)
        if each.seconds >= max(LEAST_S, longest_s / NOTICED):
            slow.append((each.source, each.target, gbit))
        else:
            fleet.links.confirmed(each.source, each.target, gbit, now_s)
    for source, target, gbit in slow:
        fleet.links.moved(source, target, gbit, now_s)


def _learn_speeds(
    fleet: Fleet, request: Request, seconds: Sequence[float], longest_s: float, now_s: float
) -> None:
    """Learn how fast the shards of a request are.

    Nothing is learned if they also prefilled something else, or with threads of other shards.

    Args:
        seconds: of arithmetic by rank. longest_s: of any, or of the longest transfer.
    """
    plan = request.plan
    if plan is None or not request.is_alone:
        return
    work, spans, chunk = plan.partition.own_gflop, plan.partition.spans, plan.chunk
    members = [fleet.members.get(shard) for shard in plan.group]
    here = [member for member in members if member is not None]
    if not len(here) == len(work) == len(seconds) or CACHED_SHARE * chunk.start > chunk.tokens:
        return
    if plan.threads > here[0].shard.threads:
        return
    parts = [
        part_of(
            member.shard.id,
            sum(span.tokens for span in own),
            gflop,
            took_s,
            _is_busy(member, request),
        )
        for member, own, gflop, took_s in zip(here, spans, work, seconds, strict=True)
    ]
    if known := [part for part in parts if part is not None]:
        fleet.speeds.learn(known, now_s)
    if len(here) > 1 and plan.is_first and longest_s > 0:
        took_s = now_s - request.launched_s
        fleet.speeds.learn_drag(plan.group, chunk.tokens, took_s, longest_s, now_s)


def _is_busy(member: Member, request: Request) -> bool:
    """Whether a shard also keeps KV of other requests, which it may decode meanwhile."""
    return bool(member.held - {request.id})
