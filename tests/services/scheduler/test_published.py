"""What the published policies claim, on the core, most of it in virtual time."""

import random
from collections.abc import Callable, Sequence
from statistics import fmean

import pytest

from sps2.common.config import Scheduler
from sps2.common.messages import PrefillOptions, Room
from sps2.services.scheduler.actions import Action, Launch, Proceed
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import (
    Chunked,
    Decoded,
    Ended,
    Granted,
    Joined,
    Prefilled,
    RoomSeen,
    Shareable,
    Submitted,
)
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Plan, Work
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.policies.sarathi import BUDGET
from sps2.services.scheduler.schemes import Schemes

from .simulated import SCHEMES, Arrival, slowdowns, ttfts
from .test_core import CONFIG, PAGE, SHARING, launched, rejected, shard
from .test_policies import heavy_tail

QUICK = Schemes(CONFIG, 2, SHARING)


def mixed(policy: str, shards: int = 4, pages: int = 64, schemes: Schemes = QUICK) -> Core:
    settings = Scheduler(prefill_span_tokens=64, decode_span_tokens=128)
    core = Core(POLICIES[policy](settings, schemes), Fleet(0, 0, shards), 64)
    for index in range(shards):
        core.handle(Joined(shard("mixed", index, pages)), 0)
    free = {f"mixed-{index}": pages for index in range(shards)}
    core.handle(RoomSeen(Room(free, free)), 0)
    return core


def start(core: Core, request: str, tokens: int = 300) -> Plan:
    plan = launched(core.handle(Submitted(Work(request, tokens, 16)), 0)).plan
    free = dict(core.fleet.room.free)
    for shard_id, pages in plan.takes.items():
        free[shard_id] -= pages
    core.handle(Granted(request, Room(free, core.fleet.room.total)), 0)
    return plan


def to_decode(core: Core, request: str) -> None:
    core.handle(Prefilled(request), 0)
    core.handle(Shareable(request), 0)


@pytest.mark.parametrize("seed", range(3))
def test_preflow_has_a_smaller_mean_slowdown_than_fcfs_on_a_heavy_tail(seed: int) -> None:
    arrivals = heavy_tail(seed)
    assert fmean(slowdowns("preflow", arrivals)) < 0.5 * fmean(slowdowns("fcfs", arrivals))


def test_pecsched_preempts_a_long_prompt_which_loses_nothing() -> None:
    short_s, long_s = (ttfts("pecsched", [Arrival(0.0, tokens)])[0] for tokens in (64, 4000))
    shorts = [Arrival(0.3 + 0.5 * number, 64) for number in range(8)]
    took = ttfts("pecsched", [Arrival(0.0, 4000), *shorts])
    assert max(took[1:]) < 2.5 * short_s
    assert took[0] < long_s + 8 * short_s + 0.3, "what it had computed is not computed again"


def test_pecsched_has_a_guard_that_the_paper_leaves_out() -> None:
    (long_s,) = ttfts("pecsched", [Arrival(0.0, 1000)])
    (short_s,) = ttfts("pecsched", [Arrival(0.0, 64)])
    stream = [Arrival(number * short_s / 2, 64) for number in range(round(40 * long_s / short_s))]
    assert ttfts("pecsched", [Arrival(0.1, 1000), *stream])[0] < 14 * long_s


def test_pecsched_starts_a_long_prompt_where_nothing_is_prefilled() -> None:
    """And the short ones in order of arrival, however much work they are."""
    arrivals = [Arrival(0.0, 200), Arrival(0.0, 200), Arrival(0.01, 4000), Arrival(0.02, 20)]
    took = ttfts("pecsched", arrivals)
    assert took[3] < took[2]
    core = mixed("pecsched", 2)
    start(core, "short", 60)
    assert core.handle(Submitted(Work("long", 300, 16, PrefillOptions(2))), 0) == []


def test_sjf_has_a_smaller_mean_than_fcfs_with_a_good_predictor_and_does_not_starve() -> None:
    draw = random.Random(3)
    arrivals = [Arrival(0.05 * number, draw.choice([100, 100, 100, 3000])) for number in range(40)]
    took, fcfs = ttfts("sjf", arrivals), ttfts("fcfs", arrivals)
    assert fmean(took) < 0.7 * fmean(fcfs)
    (long_s,) = ttfts("sjf", [Arrival(0.0, 1000)])
    (short_s,) = ttfts("sjf", [Arrival(0.0, 64)])
    stream = [Arrival(number * short_s / 2, 64) for number in range(round(40 * long_s / short_s))]
    assert ttfts("sjf", [Arrival(0.1, 1000), *stream])[0] < 7 * long_s


def test_sjf_predicts_answers_by_their_callers_history() -> None:
    """Prompts of the same length: whose answers were short goes first."""
    core = mixed("sjf", 1, 4096)
    for caller, tokens in (("brief", 4), ("verbose", 1000)):
        core.handle(Submitted(Work(caller, 60, 2000, caller=caller)), 0)
        core.handle(Granted(caller, core.fleet.room), 0)
        core.handle(Prefilled(caller), 1)
        core.handle(Decoded(caller, tokens), 1 + 0.02 * tokens)
        core.handle(Ended(caller), 30)
    start(core, "runs", 300)
    for caller in ("verbose", "brief"):
        core.handle(Submitted(Work(f"{caller} again", 300, 2000, caller=caller)), 30)
    to_decode(core, "runs")
    running = [each.request for each in core.requests(30) if each.stage == "reserving"]
    assert running == ["brief again"]


def test_distserve_keeps_the_phases_apart() -> None:
    core = mixed("distserve")
    plans = [start(core, f"r{number}", 40 + 60 * number) for number in range(2)]
    assert {shard for plan in plans for shard in plan.group} == {"mixed-0", "mixed-2"}
    assert {plan.owner for plan in plans} == {"mixed-1", "mixed-3"}
    assert all(len(plan.group) == len(plan.placements) == 1 for plan in plans)
    assert core.handle(Submitted(Work("waits", 300, 16)), 0) == [], "no decode shard prefills"


def test_splitwise_lends_a_machine_and_takes_it_back() -> None:
    core = mixed("splitwise")
    duties = {f"mixed-{index}": "decode" if index % 2 else "prefill" for index in range(4)}
    assert {id: core.fleet.duty(id) for id in duties} == duties
    groups = [start(core, f"r{number}").group for number in range(3)]
    assert sorted(groups[:2]) == [("mixed-0",), ("mixed-2",)]
    (helper,) = groups[2]
    assert duties[helper] == "decode"
    assert core.fleet.duty(helper) == "mixed"
    for request in ("r0", "r1"):
        to_decode(core, request)
    assert core.fleet.duty(helper) == "mixed", "it prefills still"
    to_decode(core, "r2")
    assert core.fleet.duty(helper) == "decode"


def test_splitwise_lends_memory_too() -> None:
    core = mixed("splitwise", 2, 24)
    first = start(core, "a")
    assert first.owner == "mixed-1"
    to_decode(core, "a")
    second = start(core, "b")
    assert second.owner == "mixed-0", "the prompt machine keeps KV while the other is full"
    assert core.fleet.duty("mixed-0") == "mixed"
    to_decode(core, "b")
    core.handle(Ended("b"), 1)
    assert core.fleet.duty("mixed-0") == "prefill"


def test_sarathi_never_stalls_an_answer_beyond_its_budget() -> None:
    """Whatever comes, a shard's next pass has at most `BUDGET` tokens, its answers' included."""
    draw = random.Random(5)
    core = mixed("sarathi", 2, 4096)
    waiting, chunks = dict[str, Plan](), dict[str, int]()
    tokens = {f"r{number}": draw.choice([20, 300, 2000]) for number in range(40)}

    def take(actions: Sequence[Action]) -> None:
        for action in actions:
            assert isinstance(action, Launch | Proceed)
            waiting[action.request] = action.plan
            chunks[action.request] = chunks.get(action.request, 0) + 1
            assert action.plan.shares_steps
            assert action.plan.group == (action.plan.owner,), "where its KV is kept"
            (shard_id,) = action.plan.group
            member = core.fleet.members[shard_id]
            answers = len(member.owned - member.prefilled.keys())
            assert sum(member.prefilled.values()) + answers <= BUDGET
            if isinstance(action, Launch):
                take(core.handle(Granted(action.request, core.fleet.room), 0))

    for request, prompt in tokens.items():
        take(core.handle(Submitted(Work(request, prompt, 16)), 0))
        for _ in range(draw.randrange(4)):
            run_one(core, waiting, tokens, draw, take)
    while waiting:
        run_one(core, waiting, tokens, draw, take)
    assert chunks.keys() == tokens.keys(), "all were computed"
    assert max(chunks.values()) >= 4


def run_one(
    core: Core,
    waiting: dict[str, Plan],
    tokens: dict[str, int],
    draw: random.Random,
    take: Callable[[Sequence[Action]], None],
) -> None:
    """One of the chunks under way ends."""
    if not waiting:
        return
    request = draw.choice(sorted(waiting))
    if waiting.pop(request).chunk.stop < tokens[request]:
        take(core.handle(Chunked(request), 0))
        return
    take(core.handle(Prefilled(request), 0))
    take(core.handle(Shareable(request), 0))
    if draw.random() < 0.5:
        take(core.handle(Ended(request), 0))


def test_sarathi_computes_a_page_even_beside_more_answers_than_its_budget() -> None:
    core = mixed("sarathi", 1, 40_000)
    for number in range(BUDGET + 1):
        start(core, f"r{number}", 1)
        to_decode(core, f"r{number}")
    assert start(core, "long").chunk.tokens == PAGE


def test_loongserve_scales_down_without_moving_kv() -> None:
    """All shards prefill a long prompt; of these as few keep its KV as have room for it."""
    core = mixed("loongserve", 4, 64, SCHEMES)
    plan = start(core, "long", 600)
    assert sorted(plan.group) == [f"mixed-{index}" for index in range(4)]
    assert len(plan.placements) == 1
    assert plan.owner in plan.group
    larger = start(mixed("loongserve", 4, 30, SCHEMES), "long", 600)
    assert len(larger.placements) == 2
    assert {place.shard for place in larger.placements} < {*larger.group}


def test_loongserve_takes_a_degree_that_the_method_allows() -> None:
    core = mixed("loongserve", 3, 400, SCHEMES)
    contradiction = PrefillOptions(method="ring", attention="fast")
    error = rejected(core.handle(Submitted(Work("no", 900, 16, contradiction)), 0)).error
    assert "brings its own method" in str(error)
    for request, method in (("usp", "usp"), ("gather", "gather")):
        work = Work(request, 900, 16, PrefillOptions(method=method))  # type: ignore[arg-type]
        plan = launched(core.handle(Submitted(work), 0)).plan
        core.handle(Granted(request, core.fleet.room), 0)
        assert len(plan.group) == (1 if method == "usp" else 2)


def test_loongserve_divides_idle_shards_among_what_waits() -> None:
    """Two long prompts that wait share four shards; a short one takes one of them."""
    core = mixed("loongserve", 4, 400, SCHEMES)
    first = start(core, "first", 3000)
    assert len(first.group) == 4
    for request, prompt in (("a", 3000), ("b", 3000), ("c", 20)):
        assert core.handle(Submitted(Work(request, prompt, 16)), 0) == []
    actions = core.handle(Prefilled("first"), 1)
    plans = {action.request: action.plan for action in actions if isinstance(action, Launch)}
    groups = [shard_id for plan in plans.values() for shard_id in plan.group]
    assert len(groups) == len({*groups}) <= 4
    assert len(plans["c"].group) == 1
    assert plans.keys() == {"a", "b", "c"}
