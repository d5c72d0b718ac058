"""Shards that are not alike: which are preferred, and in which order they compute."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from sps2.services.scheduler.degrees import Choice
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_state import Member
from sps2.services.scheduler.hardware import Wire
from sps2.services.scheduler.speeds import Pace

Each = TypeVar("Each")


def paces_of(fleet: Fleet, tokens: int) -> list[tuple[Member, Pace]]:
    """What is predicted of the members that prefill so many tokens together, the fastest first.

    Empty if all are alike.
    """
    speeds, wires = fleet.relative_speeds(), fleet.relative_wires()
    if not speeds and not wires:
        return []
    found = []
    for member in fleet.prefillers():
        shard = member.shard.id
        pace = fleet.speeds.pace(shard, speeds.get(shard, 1.0), tokens)
        found.append((member, Pace(pace.speed, pace.drag, wires.get(shard, Wire()))))
    return sorted(found, key=lambda each: each[1].order)


def well_linked(
    choice: Choice, fleet: Fleet, found: Sequence[Each], member_of: Callable[[Each], Member]
) -> list[Each]:
    """Those whose links are good enough for a choice; all, if they are too few."""
    wires = fleet.relative_wires()
    good = [
        each
        for each in found
        if wires.get(member_of(each).shard.id, Wire()).is_within(choice.worst)
    ]
    return good if len(good) >= choice.degree else list(found)


def least_rate(fleet: Fleet, shards: Sequence[str]) -> float:
    """The rate of the slowest of some shards' links, relative to the best link."""
    return min((wire.rate for wire in fleet.wires_of(shards)), default=1.0)


def pass_cost(tokens: int, member: Member, speeds: Mapping[str, float]) -> float:
    """How long a pass of a member takes with so many more tokens, in tokens at full speed."""
    return (sum(member.prefilled.values()) + tokens) / speeds.get(member.shard.id, 1.0)


def slow_first(
    members: list[tuple[Member, int]], speeds: Mapping[str, float]
) -> list[tuple[Member, int]]:
    """Ranks in order: later ones receive more keys, which takes a slow shard longer too."""
    if not speeds:
        return members
    return sorted(members, key=lambda each: speeds.get(each[0].shard.id, 1.0))
