"""What the scheduler learns of its shards from a prefill."""

from collections.abc import Sequence

from sps2.services.scheduler.fleet import Fleet, Member
from sps2.services.scheduler.request import Request
from sps2.services.scheduler.speeds import part_of

CACHED_SHARE = 8
"""Chunks behind more tokens than they have, over this, are not learned from: who attends to those
depends on where they are kept."""


def learn_speeds(
    fleet: Fleet, request: Request | None, seconds: Sequence[float], now_s: float
) -> None:
    """A request's chunk was computed: learn how fast its shards are.

    Nothing is learned if they also prefilled something else, or with threads of other shards.

    Args:
        seconds: of arithmetic by rank.
    """
    plan = request.plan if request is not None else None
    if request is None or plan is None or not request.is_alone:
        return
    own_s, spans, chunk = plan.partition.own_s, plan.partition.spans, plan.chunk
    members = [fleet.members.get(shard) for shard in plan.group]
    here = [member for member in members if member is not None]
    if not len(here) == len(own_s) == len(seconds) or CACHED_SHARE * chunk.start > chunk.tokens:
        return
    if plan.threads > here[0].shard.threads:
        return
    parts = [
        part_of(
            member.shard.id,
            sum(span.tokens for span in own),
            predicted_s,
            took_s,
            _is_busy(member, request),
        )
        for member, own, predicted_s, took_s in zip(here, spans, own_s, seconds, strict=True)
    ]
    if known := [part for part in parts if part is not None]:
        fleet.speeds.learn(known, now_s)
    if len(here) > 1 and plan.is_first and max(seconds) > 0:
        took_s = now_s - request.launched_s
        fleet.speeds.learn_drag(plan.group, chunk.tokens, took_s, max(seconds), now_s)


def _is_busy(member: Member, request: Request) -> bool:
    """Whether a shard also keeps KV of other requests, which it may decode meanwhile."""
    return bool(member.held - {request.id})
