"""The status of every shard, as the scheduler reports it."""

from typing import Literal

from sps2.common.messages import ShardStatus
from sps2.services.scheduler.fleet import Fleet, Member


def statuses(fleet: Fleet) -> tuple[ShardStatus, ...]:
    """The status of every shard, lost ones included, by id."""
    speeds, wires = fleet.relative_speeds(), fleet.relative_wires()
    here = [
        ShardStatus(
            shard.id,
            shard.role,
            _state(member, shard.id in fleet.leaving),
            shard.pid,
            shard.address,
            shard.peer.name,
            shard.peer.address.partition(":")[0],
            shard.pages,
            fleet.room.free.get(shard.id, 0),
            tuple(sorted(member.requests)),
            tuple(follower.address for follower in shard.followers),
            fleet.duty(shard.id),
            speeds.get(shard.id),
            wires[shard.id].rate if shard.id in wires else None,
            member.left_out,
        )
        for member in fleet.members.values()
        for shard in (member.shard,)
    ]
    gone = [
        ShardStatus(shard.id, shard.role, "lost", shard.pid, duty=fleet.duty(shard.id))
        for shard in fleet.lost.values()
    ]
    return tuple(sorted(here + gone, key=lambda status: status.id))


def _state(member: Member, leaving: bool) -> Literal["ready", "busy", "draining", "drained"]:
    if leaving:
        return "draining" if member.requests else "drained"
    return "busy" if member.requests else "ready"
