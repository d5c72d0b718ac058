"""Which shards a plan leaves out because they, or their links, are slow; and in words why."""

from collections.abc import Sequence

from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.hardware import Wire
from sps2.services.scheduler.links import ALIKE as ALIKE_LINKS
from sps2.services.scheduler.speeds import ALIKE


def left_out(group: Sequence[str], fleet: Fleet) -> dict[str, str]:
    """Shards that prefill nothing, and are not in a group because they are slow, with the reason.

    A shard whose link is slow as well as its arithmetic is left out for its link.
    """
    speeds, wires = fleet.relative_speeds(), fleet.relative_wires()
    slowest = min(speeds.get(shard, 1.0) for shard in group)
    used = [wires.get(shard, Wire()) for shard in group]
    rate, lag = min(wire.rate for wire in used), max(wire.lag for wire in used)
    found = {}
    for member in fleet.prefillers():
        shard = member.shard.id
        if member.prefilled or shard in group:
            continue
        wire, link = wires.get(shard, Wire()), fleet.links.of(shard)
        if link and ALIKE_LINKS * wire.rate <= rate:
            found[shard] = f"its link has {_in_words(link[0])}, {wire.rate:.2g} of the best"
        elif link and wire.lag >= ALIKE_LINKS * lag:
            found[shard] = f"its link takes {1000 * link[1]:.2g} ms, {wire.lag:.0f} times the best"
        elif ALIKE * speeds.get(shard, 1.0) <= slowest:
            found[shard] = f"it computes at {speeds[shard]:.2f} of the fastest"
    return found


def note(group: Sequence[str], fleet: Fleet) -> None:
    """Remember why members are left out of a group that begins to compute."""
    found = left_out(group, fleet)
    for id, member in fleet.members.items():
        if id in group or id in found:
            member.left_out = found.get(id, "")


def _in_words(gbit: float) -> str:
    return f"{gbit:.2g} Gbit/s" if gbit >= 1 else f"{1000 * gbit:.2g} Mbit/s"
