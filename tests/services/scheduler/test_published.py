"""What the published policies claim, on the core, most of it in virtual time."""

import random
from statistics import fmean

import pytest

from sps2.common.config import Scheduler, Sharing
from sps2.common.messages import Room
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import (
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
from sps2.services.scheduler.schemes import Schemes

from .simulated import Arrival, slowdowns, ttfts
from .test_core import CONFIG, launched, shard
from .test_policies import heavy_tail


def mixed(policy: str, shards: int = 4, pages: int = 64) -> Core:
    settings = Scheduler(prefill_span_tokens=64, decode_span_tokens=128)
    core = Core(POLICIES[policy](settings, Schemes(CONFIG, 2, Sharing())), Fleet(0, 0, shards), 64)
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
    assert core.handle(Submitted(Work("long", 300, 16)), 0) == []


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
