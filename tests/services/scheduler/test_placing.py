"""What has room is placed, and only what never has is refused."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sps2.common.errors import Invalid
from sps2.common.messages import Role, Room
from sps2.common.spans import pages_for
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import Ended, Granted, Joined, Prefilled, RoomSeen

from .test_core import PAGE, cluster, launched, rejected, room, shard, submit


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 2500), st.integers(1, 900)
)
@example([100, 100], 120 * PAGE, 60 * PAGE)
@example([40, 40, 40, 40], 1000, 400)
@settings(deadline=None)
def test_what_fits_all_pages_together_is_placed(free: list[int], prompt: int, answer: int) -> None:
    """The answer, with the end of the prompt, is to be on one shard."""
    named = {f"decode-{index}": pages for index, pages in enumerate(free)}
    core = cluster(decode=len(free))
    for index, pages in enumerate(free):
        core.handle(Joined(shard("decode", index, pages)), 0)
    core.handle(RoomSeen(Room(named, named)), 0)
    actions = submit(core, "r", prompt, answer)
    last = (prompt - 1) % PAGE + 1
    fits = pages_for(prompt + answer, PAGE) <= sum(free)
    if not fits or pages_for(last + answer, PAGE) > max(free):
        assert isinstance(rejected(actions).error, Invalid)
        return
    places = launched(actions).plan.placements
    assert [position for each in places for position in range(*each.span)] == list(range(prompt))
    assert all(0 < each.pages <= named[each.shard] for each in places)
    assert sum(each.pages for each in places) == pages_for(prompt + answer, PAGE)


def neighbours(*hosts: str, cores: int = 2) -> Core:
    """A core whose shards are on these hosts: two that prefill, two that decode."""
    core = cluster()
    for index, host in enumerate(hosts):
        role: Role = "prefill" if index < 2 else "decode"
        here = shard(role, index % 2, 64 if index >= 2 else 0)
        core.handle(Joined(replace(here, address=f"tcp://{host}:{index}", cores=cores)), 0)
    return core


def test_idle_shards_lend_their_threads_to_a_short_prompt() -> None:
    core = neighbours(*"aaaa")
    plan = launched(submit(core, "r", 60)).plan
    assert (len(plan.group), plan.threads) == (1, 2)
    assert launched(submit(core, "while that runs", 60)).plan.threads == 1
    core.handle(Ended("r"), 0)
    core.handle(Ended("while that runs"), 0)
    assert launched(submit(core, "long", 300)).plan.threads == 0, "both compute"


@pytest.mark.parametrize(
    ("hosts", "cores"), [("abaa", 2), ("aaaa", 1)], ids=["another host", "one core"]
)
def test_nobody_lends_what_is_not_there(hosts: str, cores: int) -> None:
    core = neighbours(*hosts, cores=cores)
    plan = launched(submit(core, "r", 60)).plan
    assert (len(plan.group), plan.threads) == (1, 1)
    core.handle(Ended("r"), 0)
    assert len(launched(submit(core, "s", 100)).plan.group) == 2


def test_a_shard_that_decodes_lends_nothing() -> None:
    core = neighbours(*"aaaa")
    launched(submit(core, "r", 60))
    core.handle(Granted("r", room(2, 64)), 0)
    core.handle(Prefilled("r"), 0)
    assert launched(submit(core, "s", 60)).plan.threads == 1


def test_who_asks_for_a_degree_gets_the_threads_of_as_many_shards() -> None:
    assert launched(submit(neighbours(*"aaaa"), "r", 60, sp=1)).plan.threads == 0
