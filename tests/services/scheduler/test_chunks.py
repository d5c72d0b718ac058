"""Prompts in chunks, on the core: each on the shards that are free then."""

from dataclasses import replace
from itertools import pairwise

import pytest

from sps2.common.config import Scheduler, Sharing
from sps2.common.messages import CachedRun, PrefillOptions, Room
from sps2.common.spans import Span
from sps2.services.scheduler.actions import Action, Fail, Find, Launch, Proceed
from sps2.services.scheduler.chunks import SHARED_S
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.decisions import Decision, NextChunk
from sps2.services.scheduler.events import (
    Assigned,
    Chunked,
    Ended,
    Found,
    Granted,
    Joined,
    Lost,
    Prefilled,
    Progressed,
    Returned,
    RoomSeen,
    Submitted,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Plan, Work
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.policies.fcfs import Fcfs
from sps2.services.scheduler.policies.sps2 import Sps2
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.view import Policy

from .test_core import CONFIG, PAGE, SHARING, room, shard

CHUNK = 64
SETTINGS = Scheduler(prefill_span_tokens=64, decode_span_tokens=512, chunk_tokens=CHUNK)
SCHEMES = Schemes(CONFIG, 2, SHARING)
ALONE = Scheduler(prefill_span_tokens=4096, decode_span_tokens=4096)
SLOW = Schemes(CONFIG, 2, Sharing(gflops=0.05))
FAST = Schemes(CONFIG, 2, Sharing(gflops=10.0))
HASHES = tuple(bytes([page]) for page in range(40))


def cluster(
    policy: Policy | None = None, prefill: int = 2, mixed: int = 0, absent: int = 0
) -> Core:
    fleet = Fleet(0, 0, mixed) if mixed else Fleet(prefill, 1)
    core = Core(policy or Fcfs(SETTINGS, SCHEMES), fleet, 16)
    for index in range(0 if mixed else prefill - absent):
        core.handle(Joined(shard("prefill", index)), 0)
    for index in range(mixed):
        core.handle(Joined(shard("mixed", index, 128)), 0)
    if not mixed:
        core.handle(Joined(shard("decode", 0, 128)), 0)
    free = {f"mixed-{index}": 128 for index in range(mixed)}
    core.handle(RoomSeen(Room(free, free) if mixed else room(1, 128)), 0)
    return core


def only(actions: list[Action]) -> Plan:
    (action,) = actions
    assert isinstance(action, Launch | Proceed)
    return action.plan


def start(core: Core, request: str, tokens: int, **options: int) -> Plan:
    work = Work(request, tokens, 16, PrefillOptions(**options))
    plan = only(core.handle(Submitted(work), 0))
    assert core.handle(Granted(request, core.fleet.room), 0) == []
    return plan


def test_a_long_prompt_is_computed_chunk_by_chunk() -> None:
    core = cluster()
    plans = [start(core, "r", 300)]
    while plans[-1].chunk.stop < 300:
        plans.append(only(core.handle(Chunked("r"), 1)))
    assert [plan.chunk for plan in plans] == [Span(0, 128), Span(128, 256), Span(256, 300)]
    assert {plan.placements for plan in plans} == {plans[0].placements}
    assert [plan.is_first for plan in plans] == [True, False, False]
    assert plans[0].predicted_s > plans[2].predicted_s > plans[2].rest_s == 0 < plans[0].rest_s
    sent = [plan.partition.predicted_bytes.get("prefix_q", 0) for plan in plans]
    assert sent[0] == 0 < sent[2] < sent[1], "queries go to the KV of earlier chunks"
    assert core.handle(Prefilled("r"), 2) == []


def test_one_that_fits_a_chunk_is_computed_whole() -> None:
    plan = start(cluster(), "r", 128)
    assert (plan.chunk, plan.rest_s) == (Span(0, 128), 0.0)
    whole = Fcfs(Scheduler(prefill_span_tokens=64, decode_span_tokens=512), SCHEMES)
    assert start(cluster(whole), "r", 128) == plan


def test_the_degree_follows_the_shards_that_are_free() -> None:
    core = cluster(prefill=3, absent=1)
    first = start(core, "r", 500)
    assert first.group == ("prefill-0", "prefill-1")
    core.handle(Joined(shard("prefill", 2)), 1)
    second = only(core.handle(Chunked("r"), 1))
    assert second.group == ("prefill-0", "prefill-1", "prefill-2")
    assert second.chunk == Span(128, 128 + 3 * CHUNK)
    core.handle(Lost("prefill-0", "prefill-0/0"), 2)
    third = only(core.handle(Chunked("r"), 2))
    assert third.group == ("prefill-1", "prefill-2")


def test_a_requests_own_degree_holds_for_every_chunk() -> None:
    core = cluster(prefill=3)
    assert len(start(core, "r", 500, sp_degree=1).group) == 1
    for _ in range(3):
        assert len(only(core.handle(Chunked("r"), 1)).group) == 1


def test_a_method_that_needs_another_degree_gets_it() -> None:
    """Four shards began by usp; three are left, of which it can use none but one."""
    core = cluster(prefill=4)
    work = Work("r", 900, 16, PrefillOptions(method="usp"))
    assert len(only(core.handle(Submitted(work), 0)).group) == 4
    core.handle(Granted("r", core.fleet.room), 0)
    core.handle(Lost("prefill-3", "prefill-3/0"), 1)
    plan = only(core.handle(Chunked("r"), 1))
    assert plan.partition.scheme.method == "gather"
    assert len(plan.group) == 1


def test_a_chunk_waits_for_a_shard_that_is_free() -> None:
    core = cluster(mixed=2)
    plan = start(core, "long", 300, sp_degree=1)
    other = start(core, "other", 300, sp_degree=1)
    core.handle(Assigned(plan.owner, "decode"), 1)
    assert core.handle(Chunked("long"), 1) == []
    status = {each.request: each for each in core.requests(1)}
    assert status["long"].waits_for == "shards that are free to prefill it"
    assert status["long"].stage == "prefill"
    following = only(core.handle(Ended("other"), 2))
    assert following.group == other.group
    assert following.chunk == Span(64, 128)


def test_passes_of_mixed_shards_that_take_decode_steps_along_are_short() -> None:
    core = cluster(Fcfs(ALONE, FAST), mixed=2)
    plans = [start(core, "r", 1900)]
    while plans[-1].chunk.stop < 1900:
        plans.append(only(core.handle(Chunked("r"), 1)))
    assert all(plan.group == plans[0].group for plan in plans)
    short = [plan for plan in plans if plan.shares_steps]
    seconds = [FAST.alone_s(plan.chunk.tokens, plan.chunk.start) for plan in short]
    assert len(short) > 1
    assert all(each <= SHARED_S for each in seconds)
    assert all(each > 0.9 * SHARED_S for each in seconds[:-1])
    assert not start(cluster(Fcfs(SETTINGS, FAST)), "r", 100).shares_steps, "others decode"


def test_a_chunk_of_few_tokens_is_not_worth_it() -> None:
    plan = start(cluster(Fcfs(ALONE, SLOW), mixed=2), "r", 1900)
    assert (plan.chunk, plan.shares_steps) == (Span(0, 1900), False)
    assert start(cluster(Fcfs(ALONE, SLOW), mixed=2), "r", 20).shares_steps


def test_ranks_with_much_to_do_run_beside_decode_steps() -> None:
    slow = Schemes(CONFIG, 2, Sharing(gflops=0.05, link_latency_s=0.0))
    for tokens, shares in ((64, True), (2000, False)):
        core = cluster(
            Fcfs(Scheduler(prefill_span_tokens=32, decode_span_tokens=4096), slow), mixed=2
        )
        plan = start(core, "r", tokens)
        assert len(plan.group) == 2
        assert plan.shares_steps == shares


def test_one_that_began_alone_on_a_mixed_shard_goes_on_there_beside_others() -> None:
    core = cluster(Sps2(ALONE, FAST), mixed=2)
    first = start(core, "first", 1900)
    second = start(core, "second", 1900)
    third = start(core, "third", 60)
    assert third.group in (first.group, second.group)
    assert only(core.handle(Chunked("first"), 1)).group == first.group
    assert only(core.handle(Chunked("second"), 1)).group == second.group


def test_on_mixed_shards_a_chunk_goes_where_the_kv_is() -> None:
    core = cluster(mixed=3)
    plan = start(core, "r", 300, sp_degree=1)
    while plan.chunk.stop < 300:
        assert plan.group == (plan.owner,)
        plan = only(core.handle(Chunked("r"), 1))
        assert plan.partition.predicted_bytes == {}, "nothing moves"


def test_a_lost_prefill_goes_on_behind_its_last_chunk() -> None:
    core = cluster()
    (find,) = core.handle(Submitted(Work("r", 300, 16, hashes=HASHES[:18])), 0)
    assert isinstance(find, Find)
    first = only(core.handle(Found("r", ()), 0))
    core.handle(Granted("r", core.fleet.room), 0)
    core.handle(Chunked("r"), 1)
    core.handle(Lost("prefill-1", "prefill-1/0"), 2)
    (find,) = core.handle(Returned("r"), 2)
    assert isinstance(find, Find)
    pages = first.chunk.stop // PAGE
    again = only(core.handle(Found("r", (CachedRun("decode-0", pages, pages),)), 2))
    assert again.prefix.tokens == first.chunk.stop
    assert again.chunk.start == first.chunk.stop


def test_progress_and_estimates_count_earlier_chunks() -> None:
    core = cluster(prefill=1)
    start(core, "long", 500)
    behind = [core.forecast(Work("new", 500, 16), (), 0).queue_s]
    for number in range(1, 7):
        core.handle(Progressed("long", 64 * number - 20), number)
        behind.append(core.forecast(Work("new", 500, 16), (), number).queue_s)
        core.handle(Chunked("long"), number)
        behind.append(core.forecast(Work("new", 500, 16), (), number).queue_s)
    assert all(after < 1.1 * before for before, after in pairwise(behind))
    assert behind[-1] < 0.5 * behind[0]


class Broken(Fcfs):
    """Spoils every chunk after the first."""

    def __init__(self, how: str) -> None:
        super().__init__(SETTINGS, SCHEMES)
        self._how = how

    def decide(self, view):  # type: ignore[no-untyped-def]
        for decision in super().decide(view):
            yield self._spoilt(decision) if isinstance(decision, NextChunk) else decision

    def _spoilt(self, decision: NextChunk) -> Decision:
        plan = decision.plan
        spans = plan.partition.spans
        match self._how:
            case "raises":
                raise KeyError("oh")
            case "skips":
                spans = tuple(tuple(Span(s.start + PAGE, s.stop) for s in own) for own in spans)
            case "ends within a page":
                spans = tuple(tuple(Span(s.start, s.stop - 3) for s in own[-1:]) for own in spans)
                spans = spans[:1]
                plan = replace(plan, group=plan.group[:1])
            case "moves its KV":
                plan = replace(plan, placements=plan.placements[:0])
        return NextChunk("r", replace(plan, partition=plan.partition._replace(spans=spans)))


@pytest.mark.parametrize("how", ["raises", "skips", "ends within a page", "moves its KV"])
def test_a_policy_with_a_bug_fails_the_request_and_nothing_else(how: str) -> None:
    core = cluster(Broken(how))
    start(core, "r", 300)
    (failed,) = core.handle(Chunked("r"), 1)
    assert isinstance(failed, Fail)
    assert "the scheduling policy" in str(failed.error)
    assert core.handle(Ended("r"), 1) == []
    assert start(core, "s", 40).chunk == Span(0, 40)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_goes_on_with_a_prompt_whose_shards_are_idle(policy: str) -> None:
    core = cluster(POLICIES[policy](SETTINGS, SCHEMES), mixed=2)
    plan = start(core, "r", 300)
    for _ in range(20):
        if plan.chunk.stop == 300:
            break
        plan = only(core.handle(Chunked("r"), 1))
    assert plan.chunk.stop == 300
