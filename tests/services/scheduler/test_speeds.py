"""Shards that are not equally fast: what is learned of them, and what plans make of it."""

from collections.abc import Sequence
from itertools import combinations
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.common.config import Scheduler, Sharing
from sps2.common.messages import PrefillOptions, Room
from sps2.services.scheduler.actions import Launch
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.degrees import GAIN, Degrees
from sps2.services.scheduler.event_log import EventLog
from sps2.services.scheduler.events import (
    Computed,
    Ended,
    Granted,
    Joined,
    Lost,
    Prefilled,
    RoomSeen,
    Submitted,
)
from sps2.services.scheduler.explanation import explain
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.fleet_status import statuses
from sps2.services.scheduler.partition import Capacity
from sps2.services.scheduler.plan import Plan, Work
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.replay import Recording
from sps2.services.scheduler.schemes import Schemes
from sps2.services.scheduler.speeds import ALIKE, DRIFT_S, Pace, Speeds, SpeedsState, part_of

from .test_core import CONFIG, PAGE, SHARING, room, shard
from .test_degrees import FAST, LARGE

NOTHING = PrefillOptions()
SLOW_START_S = 0.02
"""Seconds that every part takes besides those of the formulas, so that short ones seem slow."""


def measure(
    speeds: Speeds, real: dict[str, float], rows: Sequence[int], now_s: float, noise: float = 1.0
) -> None:
    """The shards of `real` compute a prompt together, as fast as it says."""
    parts = [
        part_of(shard, tokens, tokens / 1000, noise * tokens / 1000 / speed + SLOW_START_S)
        for (shard, speed), tokens in zip(real.items(), rows, strict=True)
    ]
    speeds.learn([part for part in parts if part], now_s)


def test_the_ranks_of_a_group_are_compared() -> None:
    speeds, real = Speeds(), {"a": 1.0, "b": 1.0, "c": 0.25}
    assert speeds.relative(real) == {}
    for number in range(3):
        measure(speeds, real, (1500, 1300, 1200 - 300 * number), number)
        if number == 1:
            assert speeds.relative(real)["c"] < 0.35
    found = speeds.relative(real)
    assert found["a"] == found["b"] == 1
    assert found["c"] == pytest.approx(0.25, rel=0.2)


def test_shards_that_compute_alone_are_compared_with_what_is_usual() -> None:
    speeds, real = Speeds(), {"a": 1.0, "b": 0.2}
    for number in range(6):
        for name, speed in real.items():
            measure(speeds, {name: speed}, (64,), number)
    assert speeds.relative(real)["b"] == pytest.approx(0.2, abs=0.15)
    assert speeds.relative("ab")["a"] == 1


def test_a_shard_with_short_prompts_is_not_slower_than_one_with_long_ones() -> None:
    speeds = Speeds()
    for number in range(20):
        measure(speeds, {"a": 1.0}, (64,), number)
        measure(speeds, {"b": 1.0}, (4000,), number)
    assert speeds.relative("ab") == {}


def test_noise_does_not_make_equal_shards_unequal() -> None:
    speeds, draw, names = Speeds(), Random(1), "abcd"
    for number in range(200):
        parts = [
            part_of(name, 1000, 1.0, draw.gauss(1.0, 0.02), busy=draw.random() < 0.5)
            for name in names
        ]
        speeds.learn([part for part in parts if part], number)
        assert speeds.relative(names) == {}


def test_one_that_is_not_measured_counts_as_fast_again() -> None:
    speeds, real = Speeds(), {"a": 1.0, "b": 0.25}
    for number in range(5):
        measure(speeds, real, (1000, 1000), number)
    before = 0.0
    for number in range(1, 4):
        speeds.now_s = number * DRIFT_S / 2
        now = speeds.relative(real)["b"]
        assert before < now < 1
        before = now
    speeds.now_s = 10 * DRIFT_S
    assert speeds.relative(real) == {}
    measure(speeds, real, (1000, 1000), 10 * DRIFT_S)
    assert speeds.relative(real)["b"] < 0.5


def test_one_that_is_new_counts_as_fast() -> None:
    speeds, real = Speeds(), {"a": 1.0, "b": 0.25}
    for number in range(5):
        measure(speeds, real, (1000, 1000), number)
    assert speeds.relative("abc")["c"] == 1
    speeds.forget("b")
    assert speeds.relative("ab") == {}


def test_little_parts_say_nothing() -> None:
    assert part_of("a", 4, 1.0, 1.0) is None
    assert part_of("a", 64, 0.001, 0.001) is None
    assert part_of("a", 64, 0.0, 1.0) is None
    short, long = part_of("a", 64, 1.0, 1.0), part_of("a", 1000, 1.0, 1.0)
    busy = part_of("a", 1000, 1.0, 1.0, busy=True)
    assert short
    assert long
    assert busy
    assert busy.weight < short.weight < long.weight


def test_its_state_is_data() -> None:
    speeds = Speeds()
    measure(speeds, {"a": 1.0, "b": 0.3}, (1000, 700), 3.25)
    encoded = msgspec.json.encode(speeds.state())
    again = Speeds(msgspec.json.decode(encoded, type=SpeedsState))
    assert again.state() == speeds.state()
    again.now_s = speeds.now_s
    assert again.relative("ab") == speeds.relative("ab") != {}


def test_what_a_slow_shard_costs_besides_its_arithmetic_is_learned_too() -> None:
    speeds = Speeds()
    measure(speeds, {"a": 1.0, "b": 0.2}, (700, 300), 0.0)
    speeds.learn_drag("ab", 1000, 3.0, 1.0, 0.0)
    assert speeds.pace("a", 1.0, 1000) == Pace(1.0)
    assert speeds.pace("b", 0.2, 1000).drag == pytest.approx(1.1, abs=0.1)
    assert speeds.pace("b", 0.2, 300) == speeds.pace("b", 0.2, 1500) == speeds.pace("b", 0.2, 1000)
    assert speeds.pace("b", 0.2, 10_000).drag == 0
    again = Speeds(msgspec.json.decode(msgspec.json.encode(speeds.state()), type=SpeedsState))
    assert again.pace("b", 0.2, 1000) == speeds.pace("b", 0.2, 1000)
    degrees = Degrees(Schemes(LARGE, 2, FAST))
    for drag, wanted in ((0.0, 2), (0.1, 2), (1.0, 1)):
        paces = Pace(1.0), Pace(0.5, drag)
        assert degrees.best(30_000, 2, 2, NOTHING, False, paces, paces).degree == wanted
    speeds.now_s = 10 * DRIFT_S
    assert speeds.pace("b", 0.2, 1000).drag == 0


speeds_of_ranks = st.lists(st.sampled_from([1.0, 0.9, 0.7, 0.5, 0.3, 0.1]), min_size=2, max_size=6)


@given(st.integers(200, 20_000), speeds_of_ranks, st.booleans(), st.sampled_from([0.1, 10.0, 1e3]))
@settings(deadline=None, max_examples=60)
def test_spans_follow_speeds(tokens: int, fast: list[float], in_place: bool, link: float) -> None:
    """Every token once, at pages where KV stays; and no slower than as if all were alike."""
    schemes, ranks = Schemes(CONFIG, 2, Sharing(gflops=1.0, link_gbit=link)), len(fast)
    capacity = Capacity((tokens,) * ranks, PAGE) if in_place else None
    found = schemes.choose(tokens, ranks, NOTHING, capacity, tuple(fast))
    spans = sorted(span for own in found.spans for span in own if span.tokens)
    assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
    assert spans[-1].stop == tokens
    assert not in_place or all(span.start % PAGE == 0 for span in spans)
    even = schemes.choose(tokens, ranks, NOTHING, capacity)
    if even.scheme == found.scheme:
        moved = schemes.partition(even.scheme, tokens, ranks, capacity, tuple(fast))
        assert found.predicted_s <= moved.predicted_s
    slowest = schemes.choose(tokens, ranks, NOTHING, capacity, (min(fast),) * ranks)
    assert found.predicted_s <= 1.06 * slowest.predicted_s


def test_a_slower_rank_gets_less() -> None:
    schemes = Schemes(CONFIG, 2, Sharing(gflops=1.0, link_gbit=1e3))
    spans = schemes.choose(4096, 3, NOTHING, None, (1.0, 1.0, 0.25)).spans
    first, second, third = (own[0].tokens for own in spans)
    assert first > second > 3 * third


def test_about_equal_speeds_change_nothing() -> None:
    schemes = Schemes(CONFIG, 2, Sharing(gflops=1.0))
    for tokens in (100, 1000, 10_000):
        alike = schemes.choose(tokens, 4, NOTHING)
        assert schemes.choose(tokens, 4, NOTHING, None, (1.0, 0.96, 1.0, 0.98)).spans == alike.spans


@given(
    st.integers(8_000, 100_000),
    st.lists(st.sampled_from([1.0, 0.8, 0.5, 0.25, 0.1, 0.02]), min_size=2, max_size=4),
)
@settings(deadline=None, max_examples=40)
def test_no_subset_is_faster(tokens: int, fast: list[float]) -> None:
    schemes = Schemes(LARGE, 2, FAST)
    ordered = tuple(sorted(fast, reverse=True))
    shards = len(ordered)
    paces = tuple(map(Pace, ordered))
    degree = Degrees(schemes).best(tokens, shards, shards, NOTHING, False, paces, paces).degree
    taken_s = schemes.choose(tokens, degree, NOTHING, None, ordered[:degree]).predicted_s
    for number in range(1, shards + 1):
        for subset in combinations(ordered, number):
            other_s = schemes.choose(tokens, number, NOTHING, None, subset).predicted_s
            assert taken_s <= 1.05 * GAIN * other_s


def test_a_shard_that_does_not_help_is_left_out() -> None:
    schemes = Schemes(LARGE, 2, Sharing(gflops=5e5, link_gbit=100.0, link_latency_s=1e-4))
    degrees = Degrees(schemes)

    def best(tokens: int, *fast: float) -> int:
        paces = tuple(map(Pace, fast))
        return degrees.best(tokens, len(fast), len(fast), NOTHING, False, paces, paces).degree

    assert best(30_000, 1.0, 1.0, 0.5) == 3
    assert best(30_000, 1.0, 1.0, 0.001) == 2
    assert best(500, 1.0, 0.05) == 1


def cluster(*real: float, mixed: bool = False) -> tuple[Core, EventLog]:
    """A cluster of shards that compute so fast."""
    configured = Scheduler(policy="sps2", prefill_span_tokens=64, decode_span_tokens=128)
    schemes = Schemes(CONFIG, 2, SHARING)
    fleet = Fleet(mixed=len(real)) if mixed else Fleet(len(real), 1)
    core = Core(POLICIES["sps2"](configured, schemes), fleet, 8)
    log = EventLog(core, configured, schemes)
    for index in range(len(real)):
        log.handle(Joined(shard("mixed", index, 256) if mixed else shard("prefill", index)), 0)
    if not mixed:
        log.handle(Joined(shard("decode", 0, 256)), 0)
    pages = {f"mixed-{index}": 256 for index in range(len(real))}
    log.handle(RoomSeen(Room(pages, dict(pages)) if mixed else room(1, 256)), 0)
    return core, log


def run(
    log: EventLog,
    real: Sequence[float],
    request: str,
    tokens: int,
    now_s: float = 0.0,
    sp: int | None = None,
) -> Plan:
    """Compute a prompt on shards that are so fast; returns its plan."""
    work = Work(request, tokens, 16, PrefillOptions(sp_degree=sp))
    (action,) = log.handle(Submitted(work), now_s)
    assert isinstance(action, Launch)
    plan = action.plan
    log.handle(Granted(request, log._core.fleet.room), now_s)
    seconds = tuple(
        gflop / real[int(name.split("-")[1])] * 100 + 0.01
        for name, gflop in zip(plan.group, plan.partition.own_gflop, strict=True)
    )
    for event in (Computed(request, seconds), Prefilled(request), Ended(request)):
        log.handle(event, now_s)
    return plan


def tokens_by_shard(plan: Plan) -> dict[str, int]:
    spans = zip(plan.group, plan.partition.spans, strict=True)
    return {name: sum(span.tokens for span in own) for name, own in spans}


@pytest.mark.parametrize("mixed", [False, True])
def test_plans_follow_what_prefills_took(mixed: bool) -> None:
    real = (0.25, 1.0, 1.0)
    core, log = cluster(*real, mixed=mixed)
    name = "mixed" if mixed else "prefill"
    first = tokens_by_shard(run(log, real, "first", 1500))
    assert min(first.values()) > 250
    for number in range(4):
        run(log, real, f"r{number}", 1500)
    last = run(log, real, "last", 1500)
    work = dict(zip(last.group, last.partition.own_gflop, strict=True))
    assert work.get(f"{name}-0", 0.0) < 0.4 * min(work[f"{name}-1"], work[f"{name}-2"])
    assert run(log, real, "short", 60).group[0] != f"{name}-0"
    assert f"{name}-0" not in run(log, real, "two", 600, sp=2).group
    speeds = {status.id: status.speed for status in statuses(core.fleet)}
    assert speeds[f"{name}-0"] == pytest.approx(0.25, rel=0.3)
    assert speeds[f"{name}-1"] == pytest.approx(1, rel=ALIKE - 1)
    (told,) = explain(Recording(log.lines(), "log"), "short")
    assert any(f"left out: {name}-0 (it computes at 0." in step.what for step in told.steps)
    core.handle(Lost(f"{name}-0", f"{name}-0/0"), 0)
    core.handle(Joined(shard("mixed" if mixed else "prefill", 0, 256 * mixed, life=1)), 0)
    assert all(status.speed is None for status in statuses(core.fleet))


def test_nothing_is_learned_of_shards_that_compute_something_else_too() -> None:
    core, log = cluster(1.0, 1.0)
    log.handle(Submitted(Work("a", 1000, 16, PrefillOptions(sp_degree=2))), 0)
    log.handle(Submitted(Work("b", 60, 16)), 0)
    log.handle(Computed("a", (1.0, 9.0)), 0)
    log.handle(Computed("gone", (1.0, 9.0)), 0)
    log.handle(Computed("b", (1.0, 9.0, 9.0)), 0)
    assert core.fleet.relative_speeds() == {}
