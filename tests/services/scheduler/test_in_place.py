"""Where shards do both: the last rank is the owner.

It keeps all KV of a short prompt; that of a long one stays where it is computed.
"""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sps2.common.config import Scheduler
from sps2.common.errors import Invalid
from sps2.common.messages import CachedRun, ExactMethod, PrefillOptions, Room
from sps2.common.spans import Span, pages_for
from sps2.services.scheduler.actions import Launch
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import (
    Ended,
    Granted,
    Joined,
    Lost,
    Prefilled,
    Returned,
    RoomSeen,
    Submitted,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_status import statuses
from sps2.services.scheduler.placing import Placing
from sps2.services.scheduler.plan import Plan, Work
from sps2.services.scheduler.policies.fcfs import Fcfs
from sps2.services.scheduler.schemes import Schemes

from .test_core import CONFIG, PAGE, SHARING, launched, rejected, shard, submit

SHORT = 128


def room(*free: int, total: int = 64) -> Room:
    named = {f"mixed-{index}": pages for index, pages in enumerate(free)}
    return Room(named, dict.fromkeys(named, total))


SETTINGS = Scheduler(prefill_span_tokens=64, decode_span_tokens=SHORT)
PLACING = Placing(SETTINGS, Schemes(CONFIG, 2, SHARING))


def cluster(*free: int, total: int = 64, **sharing: Any) -> Core:
    schemes = Schemes(CONFIG, 2, replace(SHARING, **sharing))
    core = Core(Fcfs(SETTINGS, schemes), Fleet(mixed=len(free)), 100)
    for index in range(len(free)):
        core.handle(Joined(shard("mixed", index, total)), 0)
    core.handle(RoomSeen(room(*free, total=total)), 0)
    return core


def check(plan: Plan, prompt: int, answer: int, free: dict[str, int]) -> None:
    """The owner keeps a short prompt if some shard has room for it; of others each rank its span.

    All of them fit, and the owner has room for the answer.
    """
    tokens, prefix = prompt - plan.prefix.tokens, plan.prefix
    rooms = [pages - prefix.takes(shard) for shard, pages in free.items()]
    is_one_kept = tokens <= SHORT and pages_for(tokens + answer, PAGE) <= max(rooms)
    keepers = plan.group[-1:] if is_one_kept else plan.group
    kept = [place for place in plan.placements if place.span.tokens]
    assert keepers == tuple(place.shard for place in kept)
    assert plan.owner == plan.group[-1] == plan.placements[-1].shard
    assert len({place.shard for place in plan.placements}) == len(plan.placements)
    assert is_one_kept or plan.partition.spans == tuple((place.span,) for place in kept)
    partition = [position for (own,) in plan.partition.spans for position in range(*own)]
    assert partition == list(range(prefix.tokens, prompt))
    assert all(own.tokens for (own,) in plan.partition.spans)
    assert all(place.span.start % PAGE == 0 for place in plan.placements)
    positions = [position for place in plan.placements for position in range(*place.span)]
    assert positions == list(range(plan.prefix.tokens, prompt))
    spans = sorted(span for place in plan.placements for span in place.shared)
    assert [each for span in spans for each in range(*span)] == list(range(plan.prefix.tokens))
    for place in plan.placements:
        grows = answer if place.shard == plan.owner else 0
        assert 0 <= place.pages * PAGE - place.span.tokens - grows < PAGE
        assert plan.takes[place.shard] <= free[place.shard]


def test_short_prompts_share_a_shard() -> None:
    core = cluster(64)
    for request in "abcdefgh":
        assert launched(submit(core, request, 30)).plan.group == ("mixed-0",)
    assert submit(core, "too many", 30) == []


@given(
    st.integers(1, 900),
    st.integers(1, 200),
    st.lists(st.integers(0, 64), min_size=1, max_size=5),
    st.none() | st.integers(1, 5),
    st.sampled_from([None, "gather", "ulysses", "pass_q"]),
)
@settings(deadline=None)
def test_any_prompt_is_placed_wherever_it_fits(
    prompt: int, answer: int, free: list[int], degree: int | None, method: ExactMethod | None
) -> None:
    core = cluster(*free)
    options = PrefillOptions(
        sp_degree=None if degree is None else min(degree, len(free)), method=method
    )
    actions = core.handle(Submitted(Work("r", prompt, answer, options)), 0)
    if actions and isinstance(actions[0], Launch):
        check(actions[0].plan, prompt, answer, room(*free).free)
    elif degree is None and method in (None, "gather"):  # else heads or shards may not do
        usable = sum(free) * PAGE - answer
        on_last_page = (prompt - 1) % PAGE + 1
        assert prompt > usable or max(free) * PAGE < answer + on_last_page


@given(
    st.integers(1, 900),
    st.integers(1, 200),
    st.lists(st.integers(0, 64), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12), st.booleans()), max_size=4),
    st.none() | st.integers(1, 4),
)
@settings(deadline=None)
def test_a_prefix_stays_where_it_is_and_the_rest_is_dealt_after_it(
    prompt: int,
    answer: int,
    free: list[int],
    runs: list[tuple[int, int, bool]],
    degree: int | None,
) -> None:
    cached = [
        CachedRun(f"mixed-{index % len(free)}", pages, pages * idle) for index, pages, idle in runs
    ]
    for index in range(len(free)):
        free[index] += sum(run.idle for run in cached if run.shard == f"mixed-{index}")
    core = cluster(*free, total=200)
    options = PrefillOptions(sp_degree=None if degree is None else min(degree, len(free)))
    work = Work("r", prompt, answer, options)
    try:
        plan = PLACING.plan(work, cached, core.fleet)
    except Invalid:
        return
    if isinstance(plan, Plan):
        check(plan, prompt, answer, room(*free).free)
        assert plan.prefix.pages <= sum(run.pages for run in cached)


def test_one_keeps_a_short_prompt_that_two_compute() -> None:
    plan = launched(submit(cluster(64, 64), "r", SHORT)).plan
    assert len(plan.group) == len(plan.partition.spans) == 2
    (place,) = plan.placements
    assert (place.shard, place.span, place.pages) == (plan.group[-1], Span(0, SHORT), 9)
    assert plan.migration_pays_after is None
    longer = launched(submit(cluster(64, 64), "r", SHORT + 1)).plan
    assert tuple(place.shard for place in longer.placements) == longer.group
    assert len(longer.group) == 2
    tight = launched(submit(cluster(8, 8), "r", SHORT)).plan
    assert tuple(place.shard for place in tight.placements) == tight.group
    assert len(tight.group) == 2


def test_one_keeps_a_short_rest_beside_who_has_the_prefix() -> None:
    core = cluster(64, 64, 64)
    cached = (CachedRun("mixed-0", 20, 20), CachedRun("mixed-1", 2, 2))
    for member in ("mixed-0", "mixed-1"):
        core.fleet.members[member].owned |= {"a", "b"}
    plan = PLACING.plan(
        Work("r", 22 * PAGE + 100, 16, PrefillOptions(sp_degree=3)), cached, core.fleet
    )
    assert isinstance(plan, Plan)
    check(plan, 22 * PAGE + 100, 16, dict.fromkeys(plan.group, 64))
    assert set(plan.group) == {"mixed-0", "mixed-1", "mixed-2"}
    first, second, owner = plan.placements
    assert [(each.pages, each.span.tokens) for each in (first, second)] == [(0, 0), (0, 0)]
    assert (owner.shard, owner.span) == ("mixed-2", Span(22 * PAGE, 22 * PAGE + 100))


def test_who_has_the_prefix_computes_the_rest_unless_it_owns_more() -> None:
    core = cluster(64, 64, 64)
    cached = (CachedRun("mixed-1", 4, 4),)
    plan = PLACING.plan(Work("r", 100, 16), cached, core.fleet)
    assert isinstance(plan, Plan)
    assert plan.group == ("mixed-1",)
    assert plan.placements[0].shared == (Span(0, 64),)
    assert plan.partition.spans == ((Span(64, 100),),)
    assert plan.partition.predicted_bytes == {}
    core.fleet.members["mixed-1"].owned |= {"a", "b"}
    plan = PLACING.plan(Work("r", 100, 16), cached, core.fleet)
    assert isinstance(plan, Plan)
    prefix, owner = plan.placements
    assert (prefix.shard, prefix.span, prefix.pages) == ("mixed-1", Span(64, 64), 0)
    assert (plan.group, owner.shared) == ((owner.shard,), ())
    assert plan.partition.predicted_bytes["prefix_q"] == 36 * 3 * 6 * 16 * 2


def test_who_has_the_prefix_is_asked_while_it_prefills_another() -> None:
    core = cluster(64, 64)
    core.fleet.members["mixed-0"].prefilled["other"] = 900
    plan = PLACING.plan(Work("r", 100, 16), (CachedRun("mixed-0", 6, 6),), core.fleet)
    assert isinstance(plan, Plan)
    assert (plan.prefix.pages, plan.group) == (6, ("mixed-1",))


def test_spans_shift_from_shards_that_are_nearly_full() -> None:
    plan = launched(submit(cluster(64, 2, 64), "r", 600, sp=3)).plan
    check(plan, 600, 16, {"mixed-0": 64, "mixed-1": 2, "mixed-2": 64})
    assert {place.shard: place.span.tokens for place in plan.placements}["mixed-1"] == 2 * PAGE


def test_more_shards_prefill_where_fewer_have_no_room() -> None:
    assert len(launched(submit(cluster(64, 64, 64), "r", 60)).plan.group) == 1
    assert len(launched(submit(cluster(3, 3, 3), "r", 60)).plan.group) == 2


def test_the_owner_is_the_one_that_owns_least_and_has_room_for_the_answer() -> None:
    core = cluster(64, 64)
    first = launched(submit(core, "a", 200)).plan
    core.handle(Granted("a", room(50, 50)), 0)
    core.handle(Prefilled("a"), 0)
    assert launched(submit(core, "b", 200)).plan.owner != first.owner
    assert launched(submit(cluster(3, 30), "r", 100, 200)).plan.owner == "mixed-1"


def test_a_shard_prefills_one_prompt_at_a_time_beside_what_it_decodes() -> None:
    core = cluster(64)
    launched(submit(core, "a", 100))
    assert submit(core, "b", 100) == []
    core.handle(Granted("a", room(50)), 0)
    assert [action.request for action in core.handle(Prefilled("a"), 0)] == ["b"]
    (status,) = statuses(core.fleet)
    assert (status.role, status.state, status.requests) == ("mixed", "busy", ("a", "b"))
    core.handle(Ended("a"), 0)
    core.handle(Ended("b"), 0)
    assert statuses(core.fleet)[0].state == "ready"


def test_waiting_ends_when_pages_come_free_and_is_not_begun_in_vain() -> None:
    core = cluster(2, 2, total=8)
    assert submit(core, "r", 100) == []
    assert launched(core.handle(RoomSeen(room(8, 8, total=8)), 0)).request == "r"
    error = rejected(submit(cluster(8, 8, total=8), "r", 241)).error
    assert "may keep them, 256 tokens" in str(error)
    error = rejected(submit(cluster(8, 8, total=8), "r", 120, sp=1)).error
    assert "may keep them, 128 tokens" in str(error)
    launched(submit(cluster(8, 8, total=8), "r", 240))
    assert isinstance(rejected(submit(cluster(8, 8, total=8), "r", 1, 128)).error, Invalid)


def test_a_loss_runs_the_request_again_on_those_that_are_left() -> None:
    core = cluster(64, 64, 64)
    plan = launched(submit(core, "r", 300)).plan
    core.handle(Granted("r", room(50, 50, 50)), 0)
    lost = plan.group[0]
    core.handle(Lost(lost, f"{lost}/0"), 0)
    assert core.fleet.waiting_for() == "1 of 3 mixed shards"
    assert core.fleet.serving()
    again = launched(core.handle(Returned("r"), 0))
    assert (again.epoch, set(again.plan.group)) == (1, set(plan.group) - {lost})


def test_a_prompt_that_needs_the_lost_shard_waits_for_it() -> None:
    core = cluster(8, 8, total=8)
    core.handle(Lost("mixed-1", "mixed-1/0"), 0)
    core.handle(RoomSeen(room(8, total=8)), 0)
    assert submit(core, "r", 200) == []
    core.handle(Joined(shard("mixed", 1, 8, life=1)), 0)
    assert launched(core.handle(RoomSeen(room(8, 8, total=8)), 0)).request == "r"


@pytest.mark.parametrize("method", ["ring", "usp"])
def test_methods_with_two_spans_per_rank_are_refused(method: ExactMethod) -> None:
    core = cluster(64, 64, 64, 64)
    error = rejected(
        core.handle(Submitted(Work("r", 300, 16, PrefillOptions(sp_degree=4, method=method))), 0)
    ).error
    assert isinstance(error, Invalid)
    assert (error.field, error.code) == ("sps2.method", "invalid_value")
    assert "gather, ulysses or pass_q" in str(error)


@pytest.mark.parametrize("pages", [[256, 256], [256, 150], [12, 256]])
def test_sparse_attention_keeps_whole_blocks_or_sends_all(pages: list[int]) -> None:
    core = cluster(*pages, total=256)
    options = PrefillOptions(sp_degree=2, attention="fast")
    plan = launched(core.handle(Submitted(Work("r", 4200, 16, options)), 0)).plan
    check(plan, 4200, 16, room(*pages).free)
    assert plan.partition.scheme.method == "csa"
    assert all(place.span.start % 64 == 0 for place in plan.placements)
    tight = cluster(11, 253, total=256)
    plan = launched(tight.handle(Submitted(Work("r", 4200, 16, options)), 0)).plan
    assert (plan.partition.attention, plan.partition.scheme.method) == ("fast", "gather")


@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 100)), min_size=1, max_size=12),
    st.data(),
)
@settings(deadline=None)
def test_pages_are_never_promised_twice_and_everything_runs(
    sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    core = cluster(40, 40, 40, total=40)
    free = Counter({f"mixed-{index}": 40 for index in range(3)})
    running: dict[str, tuple[str, Plan]] = {}
    launches: list[Launch] = []
    ended = 0

    def tell(actions: list[object]) -> None:
        for action in actions:
            assert isinstance(action, Launch)
            launches.append(action)

    def seen() -> Room:
        return Room(dict(free), dict.fromkeys(free, 40))

    for index, (prompt, answer) in enumerate(sizes):
        tell([*submit(core, str(index), prompt, answer)])
    while launches or running:
        if launches and (not running or data.draw(st.booleans())):
            launch = launches.pop(0)
            for place in launch.plan.placements:
                free[place.shard] -= place.pages
                assert free[place.shard] >= 0
            tell([*core.handle(Granted(launch.request, seen()), 0)])
            running[launch.request] = ("prefill", launch.plan)
            continue
        request = data.draw(st.sampled_from(sorted(running)))
        stage, plan = running.pop(request)
        if stage == "prefill":
            running[request] = ("decode", plan)
            tell([*core.handle(Prefilled(request), 0)])
            continue
        for place in plan.placements:
            free[place.shard] += place.pages
        tell([*core.handle(RoomSeen(seen()), 0), *core.handle(Ended(request), 0)])
        ended += 1
    assert ended == len(sizes)
    assert not core.requests(0)
    assert {status.state for status in statuses(core.fleet)} == {"ready"}
