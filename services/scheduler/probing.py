"""Which shard is to measure itself and its link next: one at a time, while it does nothing else."""

from sps2.services.scheduler.actions import Probe
from sps2.services.scheduler.events import FREES, Event
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_state import Member
from sps2.services.scheduler.hardware import Wire
from sps2.services.scheduler.measuring import Probing

AGAIN_S = 60.0
"""How long a measurement is good for."""
SLOW_AGAIN_S = 10.0
"""How long that of a shard is that is slow, or whose link is: it may be fast again."""
SLOW = 0.5
"""A shard is slow at this speed, relative to the fastest."""


def next_at(fleet: Fleet) -> float | None:
    """When the next shard is to measure; None if one does now, or if those due wait for work to
    end, which is an event."""
    probing = fleet.probing
    if probing.now or probing.is_blocked or len(fleet.members) < 2:
        return None
    return min(probing.due_s.values(), default=None)


def next_probe(fleet: Fleet, event: Event, now_s: float) -> tuple[Probe, ...]:
    """The shard that is to measure after an event, and with whom; empty if none is due and idle.

    One whose link is doubted measures that at once, also while it works: prompts may wait for it.
    """
    due_s, doubted = fleet.probing.due_s, fleet.links.doubted
    if fleet.probing.now or not isinstance(event, FREES):
        return ()
    if not (doubted or min(due_s.values(), default=now_s + 1) <= now_s):
        return ()
    due = sorted((id for id, at_s in due_s.items() if at_s <= now_s), key=due_s.__getitem__)
    for shard in (*doubted, *due):
        member, partner = fleet.members[shard], _partner(fleet, shard)
        if partner is None or not (member.is_idle or shard in doubted):
            continue
        is_quiet = all(each.is_idle for each in fleet.beside(member))
        computes = is_quiet and fleet.measures.speeds and fleet.duty(shard) != "decode"
        fleet.probing = Probing(due_s, (shard, partner.shard.id))
        return (Probe(shard, partner.shard.id, computes),)
    fleet.probing = Probing(due_s, is_blocked=True)
    return ()


def schedule(fleet: Fleet, shard: str, now_s: float) -> None:
    """A shard has measured, or could not: when it is to do so again."""
    speed = fleet.relative_speeds().get(shard, 1.0)
    is_slow = speed <= SLOW or _wire(fleet, shard) != Wire()
    due_s = fleet.probing.due_s
    if shard in due_s:
        if not is_slow:
            fleet.members[shard].left_out = ""
        due_s[shard] = now_s + (SLOW_AGAIN_S if is_slow else AGAIN_S)
    if shard in fleet.links.doubted:
        fleet.links.doubted.remove(shard)
    fleet.probing = Probing(due_s)


def _partner(fleet: Fleet, shard: str) -> Member | None:
    """Who is to answer: one that does nothing, with a good link, and not the same every time.

    One whose link is doubted, or slow, measures with a busy one rather than with none.
    """
    is_urgent = shard in fleet.links.doubted or _wire(fleet, shard) != Wire()
    others = [
        member
        for id, member in fleet.members.items()
        if id != shard and (member.is_idle or is_urgent)
    ]
    return min(
        others,
        key=lambda each: (
            not each.is_idle,
            each.shard.id in fleet.links.doubted,
            -_wire(fleet, each.shard.id).rate,
            fleet.links.measured_s(shard, each.shard.id),
            each.shard.id,
        ),
        default=None,
    )


def _wire(fleet: Fleet, shard: str) -> Wire:
    return fleet.relative_wires().get(shard, Wire())
