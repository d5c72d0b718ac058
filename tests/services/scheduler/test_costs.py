"""Predictions: what is learned, what a new request waits for, and refusals that follow."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.common.errors import Refused
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.costs import Costs
from sps2.services.scheduler.events import (
    Decoded,
    Ended,
    Granted,
    Lost,
    Prefilled,
    Progressed,
    Shareable,
    Submitted,
    Tick,
)
from sps2.services.scheduler.plan import Work

from .test_core import cluster as fcfs
from .test_core import launched, rejected, room
from .test_sps2 import LONG, SHORT, ask
from .test_sps2 import cluster as sps2


def test_before_anything_is_learned_the_formula_counts() -> None:
    assert Costs().first_token_s(2.0) == 2.0
    assert Costs().tbt_s is None


@given(st.floats(0.001, 100), st.floats(0.1, 10))
@settings(deadline=None)
def test_factors_are_learned_by_size(at_s: float, factor: float) -> None:
    costs = Costs()
    for _ in range(20):
        costs.learn_prefill(at_s, factor * at_s)
        costs.learn_prefill(1000 * at_s, 1000 * at_s)
    assert costs.first_token_s(at_s) == pytest.approx(factor * at_s, rel=0.05)
    assert costs.first_token_s(1000 * at_s) == pytest.approx(1000 * at_s, rel=0.05)


def test_fixed_costs_weigh_on_short_prompts() -> None:
    """Seconds of 0.05 + 2x are found between the sizes that were measured."""
    costs = Costs()
    for power in range(-10, 4):
        for _ in range(3):
            costs.learn_prefill(2.0**power, 0.05 + 2 * 2.0**power)
    for power in range(-9, 3):
        at = 1.3 * 2.0**power
        assert costs.first_token_s(at) == pytest.approx(0.05 + 2 * at, rel=0.1)


def test_what_changes_is_followed() -> None:
    costs = Costs()
    for factor in (1.0, 3.0):
        for _ in range(100):
            costs.learn_prefill(1.0, factor)
            costs.learn_decode(10, factor)
    assert costs.first_token_s(1.0) == pytest.approx(3.0, rel=0.2)
    assert costs.tbt_s == pytest.approx(0.3, rel=0.01)


def run_alone(core: Core, request: str, tokens: int, at_s: float, took_s: float) -> None:
    plan = launched(ask(core, request, tokens, at_s)).plan
    core.handle(Granted(request, room(2, 1000)), at_s)
    core.handle(Prefilled(request), at_s + took_s)
    core.handle(Shareable(request), at_s + took_s)
    core.handle(Decoded(request, 11), at_s + took_s + 0.2)
    core.handle(Ended(request), at_s + took_s + 0.2)
    assert plan.group


def test_the_core_learns_from_prefills_that_had_their_shards_alone() -> None:
    core = sps2()
    for number in range(10):
        run_alone(core, str(number), LONG, 10.0 * number, 3.0)
    found = core.forecast(Work("r", LONG, 16), (), 100.0)
    assert found.prefill_s == pytest.approx(3.0, rel=0.05)
    assert found.tbt_s == pytest.approx(0.02)
    launched(ask(core, "long", LONG, 100.0))
    launched(ask(core, "short", SHORT, 100.0))
    core.handle(Granted("long", room(2, 1000)), 100.0)
    core.handle(Prefilled("long"), 190.0)
    core.handle(Ended("long"), 190.0)
    again = core.forecast(Work("r", LONG, 16), (), 200.0)
    assert again.prefill_s == found.prefill_s, "that one shared its shards"


def test_what_precedes_a_request_counts() -> None:
    core = sps2()
    for number in range(10):
        run_alone(core, f"l{number}", LONG, 10.0 * number, 3.0)
        run_alone(core, f"s{number}", SHORT, 10.0 * number + 5, 0.1)
    launched(ask(core, "long", LONG, 100.0))
    core.handle(Granted("long", room(2, 1000)), 100.0)
    core.handle(Progressed("long", LONG // 2), 101.5)
    ask(core, "next", LONG, 101.5)
    short = core.forecast(Work("r", SHORT, 16), (), 101.5)
    assert (short.queue_s, short.waits_for) == (0.0, "")
    assert short.prefill_s == pytest.approx(0.1, rel=0.1)
    long = core.forecast(Work("r", LONG, 16), (), 101.5)
    assert long.queue_s == pytest.approx(1.5 + 3.0, rel=0.05)
    assert long.prefill_s == pytest.approx(3.0, rel=0.05)
    old = fcfs()
    launched(ask(old, "long", 300))
    assert old.forecast(Work("r", 60, 16), (), 1.0).queue_s > 0, "nobody passes"


def test_without_room_it_is_said_what_for() -> None:
    core = fcfs(decode=1, pages=10)
    launched(ask(core, "first", 100))
    found = core.forecast(Work("r", 100, 16), (), 1.0)
    assert (found.plan, found.waits_for) == (None, "room for its KV")


def limited(core: Core, request: str, most_s: float, at_s: float) -> list[object]:
    return [*core.handle(Submitted(Work(request, LONG, 16, max_ttft_s=most_s)), at_s)]


def test_a_first_token_that_would_come_too_late_is_refused_at_once() -> None:
    core = sps2()
    for number in range(10):
        run_alone(core, str(number), LONG, 10.0 * number, 3.0)
    error = rejected(limited(core, "tight", 2.0, 100.0)).error  # type: ignore[arg-type]
    assert isinstance(error, Refused)
    assert "max_ttft_ms is 2000" in str(error)
    assert launched(limited(core, "fair", 4.0, 100.0)).request == "fair"  # type: ignore[arg-type]
    error = rejected(limited(core, "second", 4.0, 100.0)).error  # type: ignore[arg-type]
    assert isinstance(error, Refused)
    assert error.retry_after_s == pytest.approx(3.0, rel=0.1)


def test_one_that_waits_longer_than_was_predicted_is_refused_in_time() -> None:
    core = sps2()
    for number in range(10):
        run_alone(core, str(number), LONG, 10.0 * number, 3.0)
    launched(ask(core, "long", LONG, 100.0))
    core.handle(Granted("long", room(2, 1000)), 100.0)
    assert limited(core, "patient", 7.0, 100.0) == []
    wakes_s = core.wakes_at()
    assert wakes_s is not None
    assert wakes_s <= 107.0
    error = rejected(core.handle(Tick(), wakes_s)).error
    assert isinstance(error, Refused)
    assert not math.isnan(error.retry_after_s)


def test_priorities_order_what_waits_and_what_computes() -> None:
    core = fcfs(prefill=1)
    launched(ask(core, "running", 300))
    for request, priority in (("low", -1), ("usual", 0), ("high", 3), ("also high", 3)):
        core.handle(Submitted(Work(request, 300, 16, priority=priority)), 0)
    order = []
    for _ in range(4):
        running = next(each.request for each in core.requests(0) if each.stage != "queued")
        order.append(launched(core.handle(Ended(running), 0)).request)
    assert order == ["high", "also high", "usual", "low"]

    core = sps2()
    short = launched(ask(core, "short", SHORT))
    (action,) = core.handle(Submitted(Work("long", LONG, 16, priority=2)), 0)
    assert launched([action]).urgency > short.urgency


def test_a_limit_is_kept_for_those_that_a_policy_does_not_come_to() -> None:
    """With `fcfs` nobody behind the first that waits is considered."""
    core = fcfs(prefill=1)
    launched(ask(core, "running", 300))
    ask(core, "first", 300)
    assert core.handle(Submitted(Work("limited", 300, 16, max_ttft_s=5.0)), 0) == []
    assert core.wakes_at() == 5.0
    error = rejected(core.handle(Tick(), 5.0)).error
    assert isinstance(error, Refused)
    assert core.wakes_at() is None


def test_a_forecast_while_a_shard_of_a_plan_is_lost() -> None:
    core = sps2()
    launched(ask(core, "long", LONG))
    core.handle(Lost("prefill-1", "prefill-1/0"), 1.0)
    found = core.forecast(Work("r", LONG, 16), (), 1.0)
    assert found.plan is not None
    assert found.plan.group == ("prefill-0",)
    assert found.queue_s > 0
