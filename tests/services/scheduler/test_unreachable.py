"""Shards that cannot reach each other, though the scheduler reaches both: no plan has the two."""

import pytest

from sps2.common.errors import PeerLost
from sps2.services.scheduler.actions import Reject
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import Ended, Granted, Joined, Lost, Parted, Returned, Tick
from sps2.services.scheduler.plan import Plan
from sps2.services.scheduler.unreachable import APART_S

from .test_core import cluster, launched, rejected, room, shard, submit
from .test_in_place import cluster as in_place


def part(core: Core, one: str, other: str, now_s: float = 0) -> None:
    core.handle(Parted(f"{one}/0", f"{other}/0"), now_s)


def parts(plan: Plan) -> set[str]:
    return {*plan.group, *(place.shard for place in plan.placements)}


def plan_of(core: Core, prompt: int) -> Plan:
    """How a prompt would run; it does not."""
    plan = launched(submit(core, "probe", prompt)).plan
    core.handle(Ended("probe"), 0)
    return plan


@pytest.mark.parametrize(
    "pair",
    [("prefill-0", "prefill-1"), ("decode-0", "decode-1"), ("prefill-1", "decode-0")],
    ids="-".join,
)
def test_a_lost_request_is_planned_at_once_without_one_of_the_two(pair: tuple[str, str]) -> None:
    core = cluster()
    assert {*pair} <= parts(launched(submit(core, "r", 300)).plan)
    core.handle(Granted("r", room(2, 64)), 0)
    part(core, *pair)
    again = launched(core.handle(Returned("r"), 0)).plan
    assert len({*pair} & parts(again)) == 1
    assert len(parts(again)) == 3


def test_who_is_cut_off_from_most_is_left_out() -> None:
    core = cluster(3, 3)
    for other in ("prefill-0", "prefill-2", "decode-0", "decode-1"):
        part(core, "prefill-1", other)
    assert parts(plan_of(core, 500)) == {
        *("prefill-0", "prefill-2"),
        *("decode-0", "decode-1", "decode-2"),
    }


def test_the_only_shard_of_a_role_is_kept() -> None:
    core = cluster(1, 2)
    part(core, "prefill-0", "decode-1")
    assert parts(plan_of(core, 300)) == {"prefill-0", "decode-0"}


def test_shards_that_do_both_work_apart_too() -> None:
    core = in_place(64, 64)
    assert len(parts(plan_of(core, 200))) == 2
    part(core, "mixed-0", "mixed-1")
    assert len(parts(plan_of(core, 200))) == 1


def test_after_a_while_the_link_is_tried_again() -> None:
    core = cluster()
    part(core, "prefill-0", "prefill-1")
    assert submit(core, "two", 60, sp=2) == []
    assert core.wakes_at() == APART_S
    assert core.handle(Tick(), APART_S - 1) == []
    assert len(launched(core.handle(Tick(), APART_S)).plan.group) == 2


def test_who_can_run_only_on_both_is_told_why_it_waited() -> None:
    core = cluster()
    part(core, "prefill-0", "prefill-1")
    submit(core, "two", 60, sp=2)
    part(core, "prefill-0", "prefill-1", APART_S - 1)
    part(core, "prefill-0", "prefill-1", 2 * APART_S - 2)
    actions = core.handle(Tick(), 60.0)
    error = rejected(actions).error
    assert isinstance(error, PeerLost)
    assert str(error).startswith("prefill-0 and prefill-1 cannot reach each other")


@pytest.mark.parametrize("returns", [False, True])
def test_nothing_is_held_against_a_new_life(returns: bool) -> None:
    core = cluster()
    part(core, "prefill-0", "prefill-1")
    if returns:
        core.handle(Lost("prefill-1", "prefill-1/0"), 0)
    core.handle(Joined(shard("prefill", 1, life=1)), 0)
    assert len(plan_of(core, 300).group) == 2
    part(core, "prefill-0", "prefill-1")  # the old life: told late
    part(core, "prefill-0", "prefill-0")  # who lost nobody else has let the request go
    assert len(plan_of(core, 300).group) == 2


def test_others_are_not_kept_waiting() -> None:
    core = cluster()
    part(core, "prefill-0", "prefill-1")
    assert submit(core, "two", 60, sp=2) == []
    actions = submit(core, "other", 60)
    assert not any(isinstance(action, Reject) for action in actions)
    assert launched(actions).request == "other"
