"""Mixed shards with duties: who prefills and who keeps KV, and what cannot be."""

from collections.abc import Iterator

import pytest

from sps2.common.config import Scheduler
from sps2.common.errors import Invalid
from sps2.common.messages import CachedRun, Role, Room
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.decisions import Assign, Decision
from sps2.services.scheduler.events import Assigned, Found, Joined, Lost, RoomSeen, Submitted, Tick
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_status import statuses
from sps2.services.scheduler.plan import Work
from sps2.services.scheduler.policies.fcfs import Fcfs
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import View

from .test_core import CONFIG, SHARING, cluster, launched, rejected, shard, submit

ROOM = Room(
    dict.fromkeys(("mixed-0", "mixed-1", "mixed-2"), 64), {f"mixed-{n}": 64 for n in range(3)}
)
SETTINGS = Scheduler(prefill_span_tokens=64, decode_span_tokens=128)


def mixed(policy: Fcfs | None = None, **duties: Role) -> Core:
    schemes = Schemes(CONFIG, 2, SHARING)
    named = {name.replace("_", "-"): duty for name, duty in duties.items()}
    core = Core(policy or Fcfs(SETTINGS, schemes), Fleet(0, 0, 3, named), 8)
    for index in range(3):
        core.handle(Joined(shard("mixed", index, 64)), 0)
    core.handle(RoomSeen(ROOM), 0)
    return core


def test_without_duties_kv_stays_where_it_was_computed() -> None:
    plan = launched(submit(mixed(), "r", 300)).plan
    assert sorted(plan.group) == sorted(place.shard for place in plan.placements)


def test_a_shard_that_only_prefills_keeps_nothing() -> None:
    core = mixed(mixed_0="prefill")
    for request in ("r", "s", "t"):
        plan = launched(submit(core, request, 60)).plan
        assert {place.shard for place in plan.placements} <= {"mixed-1", "mixed-2"}
    duties = {status.id: status.duty for status in statuses(core.fleet)}
    assert duties == {"mixed-0": "prefill", "mixed-1": "mixed", "mixed-2": "mixed"}


def test_a_shard_that_only_decodes_prefills_nothing() -> None:
    core = mixed(mixed_0="decode", mixed_1="decode")
    plan = launched(submit(core, "r", 300)).plan
    assert plan.group == ("mixed-2",)
    assert len(plan.placements) >= 2
    error = rejected(submit(core, "s", 60, sp=2)).error
    assert "sp_degree 2 is more than the cluster's 1" in str(error)


def test_a_duty_can_change_while_requests_wait() -> None:
    core = mixed(mixed_0="decode", mixed_1="decode")
    launched(submit(core, "r", 60))
    assert submit(core, "waits", 60) == []
    plan = launched(core.handle(Assigned("mixed-1", "mixed"), 1)).plan
    assert plan.group == ("mixed-1",)


def test_cached_pages_on_a_shard_that_only_prefills_are_not_used() -> None:
    for duty, tokens in (("mixed", 32), ("prefill", 0)):
        core = mixed(mixed_0=duty) if duty == "prefill" else mixed()
        core.handle(Submitted(Work("r", 60, 16, hashes=(b"a", b"b", b"c"))), 0)
        launch = launched(core.handle(Found("r", (CachedRun("mixed-0", 2, 2),)), 0))
        assert launch.plan.prefix.tokens == tokens


@pytest.mark.parametrize(
    ("shard_id", "duty", "why"),
    [
        ("mixed-9", "decode", "no shard mixed-9; there are mixed-0, mixed-1, mixed-2"),
        ("mixed-2", "decode", "with mixed-2 as decode, no shard would prefill"),
    ],
)
def test_what_is_refused_changes_nothing(shard_id: str, duty: Role, why: str) -> None:
    core = mixed(mixed_0="decode", mixed_1="decode")
    with pytest.raises(Invalid, match=why):
        core.handle(Assigned(shard_id, duty), 0)
    assert [member.shard.id for member in core.fleet.prefillers()] == ["mixed-2"]


def test_prefill_and_decode_shards_keep_their_duties() -> None:
    with pytest.raises(Invalid, match="only mixed shards can"):
        cluster().handle(Assigned("prefill-0", "mixed"), 0)


def test_a_shard_that_returns_has_its_duty_again() -> None:
    core = mixed()
    core.handle(Assigned("mixed-0", "prefill"), 0)
    core.handle(Lost("mixed-0", "mixed-0/0"), 0)
    assert statuses(core.fleet)[0].duty == "prefill"
    core.handle(Joined(shard("mixed", 0, 64, life=1)), 0)
    assert [member.shard.id for member in core.fleet.keepers()] == ["mixed-1", "mixed-2"]
    core.handle(Assigned("mixed-0", "mixed"), 0)
    assert core.fleet.in_place


class Assigning(Fcfs):
    """Has a duty for a shard, once."""

    def __init__(self, assign: Assign) -> None:
        super().__init__(SETTINGS, Schemes(CONFIG, 2, SHARING))
        self.next = [assign]

    def decide(self, view: View) -> Iterator[Decision]:
        if len(view.fleet.members) == 3 and self.next:
            yield self.next.pop()
        yield from super().decide(view)


def test_a_policy_assigns_duties() -> None:
    core = mixed(Assigning(Assign("mixed-1", "decode")))
    assert core.fleet.duty("mixed-1") == "decode"
    core = mixed(Assigning(Assign("mixed-7", "decode")))
    core.handle(Tick(), 0)
    assert core.broken_rules == 1


def test_if_all_of_a_kind_are_lost_the_others_do_both() -> None:
    core = mixed(mixed_0="prefill")
    core.handle(Assigned("mixed-1", "decode"), 0)
    core.handle(Assigned("mixed-2", "decode"), 0)
    core.handle(Lost("mixed-0", "mixed-0/0"), 0)
    assert launched(submit(core, "r", 60)).plan.group[0] in ("mixed-1", "mixed-2")
    core.handle(Joined(shard("mixed", 0, 64, life=1)), 1)
    assert launched(submit(core, "s", 60)).plan.group == ("mixed-0",)
