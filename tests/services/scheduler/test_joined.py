"""Shards beside the configured ones: they come and go, and are missed only while they are there."""

from collections.abc import Callable

import pytest

from sps2.common.config import Scheduler
from sps2.common.errors import Invalid
from sps2.common.messages import CachedRun, PrefillOptions, Room
from sps2.services.scheduler.actions import Launch, Proceed
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import (
    Chunked,
    Ended,
    Found,
    Granted,
    Joined,
    Lost,
    Retired,
    RoomSeen,
    Submitted,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_status import statuses
from sps2.services.scheduler.plan import Work
from sps2.services.scheduler.policies.fcfs import Fcfs
from sps2.services.scheduler.policies.sps2 import Sps2
from sps2.services.scheduler.schemes import Schemes

from .test_core import CONFIG, SHARING, launched, rejected, shard, submit

SETTINGS = Scheduler(prefill_span_tokens=64, decode_span_tokens=128)
ALONE = Scheduler(prefill_span_tokens=4096, decode_span_tokens=4096, chunk_tokens=64)


def mixed(present: int, configured: int = 1, settings: Scheduler = SETTINGS) -> Core:
    policy = Fcfs(settings, Schemes(CONFIG, 2, SHARING))
    core = Core(policy, Fleet(0, 0, configured), 8)
    for index in range(present):
        join(core, index)
    return core


def join(core: Core, index: int) -> None:
    core.handle(Joined(shard("mixed", index, 64)), 0)
    pages = dict.fromkeys(core.fleet.members, 64)
    core.handle(RoomSeen(Room(pages, dict(pages))), 0)


def states(core: Core) -> dict[str, str]:
    return {status.id: status.state for status in statuses(core.fleet)}


def test_shards_that_join_are_used_and_counted() -> None:
    core = mixed(present=3)
    assert len(launched(submit(core, "r", 300)).plan.group) == 3
    assert core.fleet.waiting_for() == ""
    assert core.fleet.counters() == {"mixed_shards": 3.0, "mixed_shards_expected": 3.0}
    assert len(launched(submit(mixed(present=3), "s", 90, sp=3)).plan.group) == 3


def test_one_that_joined_and_was_lost_is_shown_but_not_waited_for() -> None:
    core = mixed(present=2)
    core.handle(Lost("mixed-1", "mixed-1/0"), 0)
    assert states(core) == {"mixed-0": "ready", "mixed-1": "lost"}
    assert core.fleet.waiting_for() == ""
    assert core.fleet.counters()["mixed_shards_expected"] == 1.0
    error = rejected(submit(core, "r", 60, sp=2)).error
    assert str(error) == "sp_degree 2 is more than the cluster's 1 mixed shard"
    join(core, 1)
    assert states(core) == {"mixed-0": "ready", "mixed-1": "ready"}


def test_an_answer_goes_on_after_the_loss_of_shards_that_it_asked_for() -> None:
    core = mixed(present=2)
    core.handle(Lost("mixed-1", "mixed-1/0"), 0)
    work = Work("r", 60, 16, PrefillOptions(sp_degree=2), resumes=True)
    assert launched(core.handle(Submitted(work), 0)).plan.group == ("mixed-0",)


def test_a_configured_one_is_waited_for_even_if_another_joined() -> None:
    core = mixed(present=2)
    core.handle(Lost("mixed-0", "mixed-0/0"), 0)
    assert core.fleet.waiting_for() == "1 of 2 mixed shards"
    assert core.fleet.serving()


def test_a_shard_that_retires_gets_nothing_new_and_is_gone_without_a_trace() -> None:
    core = mixed(present=2)
    core.handle(Retired("mixed-1"), 0)
    for request in "abcd":
        plan = launched(submit(core, request, 30)).plan
        assert plan.group == ("mixed-0",)
        assert {place.shard for place in plan.placements} == {"mixed-0"}
    assert core.fleet.waiting_for() == "mixed-1 is draining"
    core.handle(Lost("mixed-1", "mixed-1/0"), 0)
    assert core.fleet.waiting_for() == ""
    assert states(core) == {"mixed-0": "busy"}
    join(core, 1)
    assert len(core.fleet.prefillers()) == 2, "it may come back"


def test_a_shard_that_retires_keeps_what_it_has() -> None:
    core = mixed(present=2)
    plan = launched(submit(core, "r", 60)).plan
    core.handle(Granted("r", core.fleet.room), 0)
    (busy,) = plan.group
    core.handle(Retired(busy), 0)
    assert not core.fleet.members[busy].is_idle
    assert states(core)[busy] == "draining"
    core.handle(Ended("r"), 0)
    assert states(core)[busy] == "drained"


def test_a_prompt_in_chunks_goes_on_where_a_shard_retires() -> None:
    policy = Sps2(ALONE, Schemes(CONFIG, 2, SHARING))
    core = Core(policy, Fleet(0, 0, 1), 8)
    join(core, 0)
    join(core, 1)
    (launch,) = core.handle(Submitted(Work("r", 300, 16, PrefillOptions())), 0)
    assert isinstance(launch, Launch)
    core.handle(Granted("r", core.fleet.room), 0)
    plan = launch.plan
    core.handle(Retired(plan.owner), 0)
    while plan.chunk.stop < 300:
        (action,) = core.handle(Chunked("r"), 1)
        assert isinstance(action, Proceed), action
        plan = action.plan
    assert plan.chunk.stop == 300


def test_cached_pages_of_a_shard_that_retires_are_not_used() -> None:
    core = mixed(present=2)
    core.handle(Retired("mixed-1"), 0)
    core.handle(Submitted(Work("r", 60, 16, hashes=(b"a", b"b", b"c"))), 0)
    launch = launched(core.handle(Found("r", (CachedRun("mixed-1", 2, 2),)), 0))
    assert launch.plan.prefix.tokens == 0


def test_with_only_retiring_shards_requests_wait() -> None:
    core = mixed(present=1)
    core.handle(Retired("mixed-0"), 0)
    assert submit(core, "r", 60) == []
    assert not core.fleet.serving()
    assert core.fleet.waiting_for() == "mixed-0 is draining"


def test_one_that_is_lost_already_is_forgotten() -> None:
    core = mixed(present=2)
    core.handle(Lost("mixed-1", "mixed-1/0"), 0)
    core.handle(Retired("mixed-1"), 0)
    assert states(core) == {"mixed-0": "ready"}


@pytest.mark.parametrize("change", [lambda core: core.handle(Retired("mixed-1"), 0)])
def test_a_restored_fleet_is_the_same(change: Callable[[Core], object]) -> None:
    core = mixed(present=2)
    change(core)
    again = mixed(present=0)
    again.restore(core.state())
    assert again.fleet.leaving == {"mixed-1"}
    assert [member.shard.id for member in again.fleet.prefillers()] == ["mixed-0"]


def test_a_prompt_too_large_without_the_leaving_shard_is_refused_and_does_not_wait() -> None:
    core = mixed(present=2)
    core.handle(Retired("mixed-1"), 0)
    error = rejected(submit(core, "r", 64 * 16 + 100)).error
    assert isinstance(error, Invalid)
