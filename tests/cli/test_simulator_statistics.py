"""Figures of runs, their intervals, verdicts, and what differs between two runs."""

import math
import random
import statistics
import time
from collections import Counter
from statistics import NormalDist

import pytest

from sps2.cli.simulator import intervals
from sps2.cli.simulator.comparison import (
    are_distinct,
    compare,
    counterfactuals,
    have_same_requests,
    shift_of,
)
from sps2.cli.simulator.intervals import Figure
from sps2.cli.simulator.outcomes import Delay
from sps2.cli.simulator.statistics import (
    Objectives,
    figure,
    find_long_tokens,
    is_starved,
    summarise,
)
from sps2.cli.simulator.verdict import judge, waiting_over_time

from .made_runs import outcome, queued, run_of


def correlated(draw: random.Random, count: int, memory: float) -> list[float]:
    """Log-normal values, each like the one before."""
    value, found = draw.gauss(0, 1), []
    for _ in range(count):
        value = memory * value + math.sqrt(1 - memory**2) * draw.gauss(0, 1)
        found.append(math.exp(value))
    return found


@pytest.mark.parametrize(("count", "memory"), [(30, 0.0), (400, 0.0), (4000, 0.0), (4000, 0.9)])
def test_intervals_cover_the_truth(count: int, memory: float) -> None:
    draw = random.Random(1)
    normal = NormalDist()
    truth = [math.exp(0.5), *(math.exp(normal.inv_cdf(p)) for p in (0.5, 0.9, 0.99))]
    truth.append(1 - normal.cdf(math.log(2)))
    trials = 100 if count > 1000 else 200
    hits = [0] * 5
    for _ in range(trials):
        values = correlated(draw, count, memory)
        found = [intervals.mean(values), *intervals.quantiles(values, (0.5, 0.9, 0.99))]
        found.append(intervals.share([each > 2 for each in values]))
        for place, (each, true) in enumerate(zip(found, truth, strict=True)):
            hits[place] += each.low <= true <= each.high
    assert all(each / trials >= 0.86 for each in hits), hits
    # An interval that always covers would be too wide to be of use.
    assert count < 4000 or min(hits) < trials, hits


def test_taking_correlated_requests_for_independent_would_not_cover() -> None:
    draw = random.Random(1)
    hits = 0
    for _ in range(100):
        values = correlated(draw, 4000, 0.9)
        half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
        hits += abs(statistics.fmean(values) - math.exp(0.5)) <= half
    assert hits < 60


def test_a_median_has_the_limits_of_the_textbook() -> None:
    [found] = intervals.quantiles([float(each) for each in range(1, 21)], [0.5])
    assert found == Figure(10.5, 6.0, 15.0, 20)  # order statistics 6 and 15 of 20


def test_few_requests_do_not_bound_the_99th_percentile() -> None:
    ascending = [float(each) for each in range(367)]
    draw = random.Random(3)
    draw.shuffle(ascending)
    [of_few] = intervals.quantiles(ascending[:300], [0.99])
    [of_enough] = intervals.quantiles(ascending[:39] * 10, [0.99])
    assert math.isinf(of_few.high)
    assert of_few.low > 250
    assert of_enough.high == max(ascending[:39])


def test_a_mean_of_three_has_the_limits_of_student() -> None:
    found = intervals.mean([1.0, 2.0, 3.0])
    assert found.value == 2
    assert found.high - found.value == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert found.low == 0  # not negative


def test_the_margin_widens_an_interval() -> None:
    found = Figure(10.0, 7.0, 14.0, 5).widened(0.4)
    assert found == Figure(10.0, 5.0, pytest.approx(10 + math.sqrt(32)), 5)


def test_a_rate_is_an_amount_by_time_with_the_spread_of_its_bins() -> None:
    even = intervals.rate([(second + 0.5, 3.0) for second in range(40)], 0.0, 40.0)
    assert even == Figure(3.0, 3.0, 3.0, 40)
    uneven = intervals.rate([(second + 0.5, 6.0) for second in range(20)], 0.0, 40.0)
    assert uneven.value == 3
    assert uneven.low < 2 < 4 < uneven.high


def test_a_level_is_weighed_by_time() -> None:
    found = intervals.level_over_time([(1.0, 4), (2.0, 0), (9.0, 1)], 0.0, 10.0)
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.5 < found.high


def test_times_of_tokens_are_weighed_by_their_number() -> None:
    median, high = intervals.weighted_quantiles({0.1: 98.0, 5.0: 2.0}, [0.5, 0.99], 1000)
    assert (median.value, high.value) == (0.1, 5.0)
    assert (median.low, median.high) == (0.1, 0.1)
    assert high.low == 5.0


def test_a_summary_has_the_known_answers() -> None:
    requests = [
        outcome("a", 0.0, 1.0, prompt_tokens=100, sent_bytes={"kv": 30.0}),
        outcome("b", 1.0, 3.0, prompt_tokens=100, cached_tokens=50, sent_bytes={"q": 10.0}),
        outcome("c", 2.0, 5.0, prompt_tokens=9000, delays=[Delay("room", 2.0, 6.0)]),
        outcome("d", 3.0, None, error="no room", ended_s=3.5),
        outcome("e", 4.0, None),
    ]
    found = summarise(
        run_of(requests, stopped_s=10.0, steps={0.1: 30.0}, queue=[(0.0, 0), (2.0, 1), (6.0, 0)]),
        objectives=Objectives(ttft_s=4.0),
    )
    assert (found.requests, found.completed, found.failed, found.unfinished) == (5, 3, 1, 1)
    assert found.errors == {"no room": 1}
    assert found.long_tokens == 100
    assert found.ttft_s.all.mean.value == 3
    assert found.ttft_s.short.mean.value == 2
    assert found.ttft_s.long.p99.value == 5
    assert found.slowdown.all.p50.value == 6
    assert found.tbt_s.all.p90.value == pytest.approx(0.1)
    assert found.itl_s.p50.value == 0.1
    assert found.e2e_s.all.mean.value == pytest.approx(4)
    assert found.prefill_tokens_per_s.value == pytest.approx(9200 / 7)
    assert found.decode_tokens_per_s.value == pytest.approx(30 / 7)
    assert found.requests_per_s.value == pytest.approx(3 / 8)
    assert found.goodput_share.value == pytest.approx(2 / 5)
    assert found.goodput_per_s.value == pytest.approx(2 / 8)
    assert found.sent_bytes["all"].value == 40
    assert found.sent_bytes_per_request["kv"].value == 6
    assert found.waits_s["room"].value == pytest.approx(4 / 5)
    assert found.waiting.value == pytest.approx(0.5)
    assert found.most_waiting == 1
    assert found.cached_share.value == pytest.approx(50 / sum(e.prompt_tokens for e in requests))
    for name in ("ttft_s.all.mean", "goodput_share", "sent_bytes.kv", "waits_s.room", "waiting"):
        each = figure(found, name)
        assert each.low < each.value < each.high, name


def test_a_figure_that_is_none_is_refused() -> None:
    found = summarise(run_of([outcome("a")]))
    assert not figure(found, "sent_bytes.kv").is_known
    with pytest.raises(AttributeError, match="policy is no figure"):
        figure(found, "policy")


def test_the_margin_counts_in_goodput_where_requests_are_near_the_objective() -> None:
    near = [outcome(str(place), place, 0.95) for place in range(100)]
    far = [outcome(str(place), place, 0.5) for place in range(100)]
    objectives = Objectives(ttft_s=1.0)
    low_near = summarise(run_of(near, margin=0.1), objectives=objectives).goodput_share.low
    low_far = summarise(run_of(far, margin=0.1), objectives=objectives).goodput_share.low
    assert low_near == 0
    assert low_far > 0.95


@pytest.mark.parametrize(
    ("objectives", "met"),
    [
        (Objectives(), True),
        (Objectives(ttft_s=0.9), False),
        (Objectives(tbt_s=0.05), False),
        (Objectives(e2e_s=1.5), False),
        (Objectives(slowdown=1.5), False),
        (Objectives(1.0, 0.11, 2.0, 2.0), True),
    ],
)
def test_each_objective_counts(objectives: Objectives, met: bool) -> None:
    assert objectives.are_met(outcome("a")) is met


def test_a_starved_request_waited_long_and_many_times_as_long_as_alone() -> None:
    assert is_starved(outcome("a", 0.0, 11.0, alone_s=0.5), 99.0)
    assert not is_starved(outcome("a", 0.0, 9.0, alone_s=0.5), 99.0)  # under 10 s
    assert not is_starved(outcome("a", 0.0, 60.0, alone_s=10.0), 99.0)  # only 6 times as long
    assert is_starved(outcome("a", 0.0, None), 30.0)  # never came
    assert not is_starved(outcome("a", 0.0, None, error="x", ended_s=1.0), 30.0)


def test_long_prompts_lie_beyond_a_clear_gap() -> None:
    draw = random.Random(1)
    short = [draw.randint(100, 4000) for _ in range(930)]
    assert find_long_tokens([*short, *(draw.randint(100_000, 500_000) for _ in range(70))]) == max(
        short
    )
    assert find_long_tokens(range(1, 1001)) == 950
    assert find_long_tokens([7] * 10) == 7
    assert find_long_tokens([]) == 0


def states(load: float, **fields) -> Counter[str]:
    return Counter(judge(queued(load, seed=seed, **fields)).state for seed in range(8))


@pytest.mark.parametrize("shortest_first", [False, True])
def test_a_verdict_tells_overload_from_a_stable_queue(shortest_first: bool) -> None:
    assert states(0.5, shortest_first=shortest_first)["stable"] >= 7
    assert states(2.0, shortest_first=shortest_first)["overloaded"] >= 7


def test_a_short_run_of_a_low_load_is_never_called_overloaded() -> None:
    assert not states(0.3, count=100)["overloaded"]


def test_a_burst_that_drains_is_a_backlog() -> None:
    found = judge(queued(0.3, burst=(100, 900), count=1400))
    assert found.state == "backlogged"
    assert found.busy_s > 60


def test_all_at_once_is_a_backlog() -> None:
    found = judge(run_of([outcome(str(place), 0.0, 1.0 + place) for place in range(50)]))
    assert found.state == "backlogged"
    assert found.drain_s == 50


def test_the_queue_is_counted_from_the_requests_where_none_was_recorded() -> None:
    run = run_of([outcome("a", 0.0, 2.0), outcome("b", 1.0, 3.0)])
    assert waiting_over_time(run) == [(0.0, 1), (1.0, 2), (2.0, 1), (4.0, 0)]


def test_policies_on_the_same_requests_are_told_apart() -> None:
    fcfs, shortest = queued(0.8), queued(0.8, shortest_first=True, noise=2)
    again = queued(0.8, shortest_first=True, noise=3)
    assert have_same_requests(fcfs, shortest)
    for name in ("ttft_s.short.mean", "ttft_s.short.p99", "slowdown.all.mean"):
        assert are_distinct(fcfs, shortest, name), name
        assert not are_distinct(shortest, again, name), name


def test_pairs_tell_apart_what_their_own_intervals_do_not() -> None:
    draw = random.Random(5)
    times = [draw.expovariate(1.0) for _ in range(200)]
    first = run_of([outcome(str(i), i, each) for i, each in enumerate(times)])
    second = run_of([outcome(str(i), i, each + 0.05) for i, each in enumerate(times)], policy="x")
    [found] = compare(first, second, names=["ttft_s.all.mean"]).differences
    assert found.first.overlaps(found.second)
    assert found.is_paired
    assert found.change.value == pytest.approx(0.05)
    assert found.is_distinct


def test_the_same_policy_is_rarely_told_apart_from_itself() -> None:
    """95 % intervals of the change of a p99 between two draws leave out 0 in few cases."""
    draw = random.Random(2)
    wrong = 0
    for _ in range(100):
        runs = [
            run_of([outcome(str(i), i, draw.expovariate(1.0)) for i in range(600)])
            for _ in range(2)
        ]
        wrong += are_distinct(*runs, "ttft_s.all.p99")
    assert wrong <= 10


def test_an_error_of_the_profile_counts_less_where_both_runs_have_it() -> None:
    first = run_of([outcome(str(i), i, 1.0) for i in range(60)], margin=0.1)
    slower = [outcome(str(i), i, 1.1) for i in range(60)]
    same = run_of(slower, margin=0.1, policy="x")
    other = run_of(slower, margin=0.1, profile="h100")
    assert are_distinct(first, same, "ttft_s.all.mean")
    assert not are_distinct(first, other, "ttft_s.all.mean")


def test_other_requests_are_compared_without_pairs() -> None:
    first, second = queued(0.5, seed=1), queued(0.5, seed=2)
    found = compare(first, second, names=["ttft_s.all.mean", "requests_per_s"]).differences
    assert not any(each.is_paired or each.is_distinct for each in found)
    assert found[0].change.low < 0 < found[0].change.high


def test_a_counterfactual_says_what_differs() -> None:
    here = outcome("a", 0.0, 12.0, delays=[Delay("turn", 0.0, 10.0), Delay("held back", 10, 10.5)])
    there = outcome("a", 0.0, 3.0, delays=[Delay("turn", 0.0, 2.0)], degree=4)
    found = shift_of(here, there, "lars")
    assert found.change_s == -9
    assert found.parts_s == {"computing": -0.5, "held back": -0.5, "turn": -8.0}
    assert found.in_words == (
        "on lars, this request would have had a TTFT of 3 s instead of 12 s: 8 s less waiting for "
        "its turn; 0.5 s less computing; 0.5 s less being held back; degree 4 instead of 1"
    )
    failed = shift_of(here, outcome("a", 0.0, None, error="no room"), "lars")
    assert failed.in_words == (
        "on lars, this request would have had no first token: it fails there (no room)"
    )


def test_a_diff_begins_with_the_requests_that_changed_most() -> None:
    first = run_of([outcome("a"), outcome("b"), outcome("c"), outcome("gone", ttft_s=None)])
    second = run_of([outcome("a", ttft_s=1.5), outcome("b", ttft_s=9.0), outcome("gone")])
    assert [each.request for each in compare(first, second).shifts] == ["b", "a", "gone"]
    assert [each.request for each in counterfactuals(first, second)] == ["a", "b", "gone"]


@pytest.mark.parametrize(
    "requests",
    [[], [outcome("a")], [outcome(str(i), i, None, error="no", ended_s=i + 1.0) for i in range(9)]],
    ids=["none", "one", "all failed"],
)
def test_small_runs_have_a_summary(requests) -> None:
    run = run_of(requests, margin=0.1)
    found = summarise(run, objectives=Objectives(ttft_s=2.0))
    assert found.requests == len(requests)
    assert found.verdict.state == ("failing" if len(requests) > 1 else "stable")
    if len(requests) == 1:  # of one, the profile's error only
        assert found.ttft_s.all.p99 == Figure(1.0, 0.9, 1.1, 1)
    else:
        assert not found.ttft_s.all.mean.is_known
        assert not found.prefill_tokens_per_s.is_known
    assert not any(each.is_distinct for each in compare(run, run).differences)


def test_ten_thousand_requests_take_little_time() -> None:
    run = queued(0.8, count=10_000)
    start = time.process_time()
    summarise(run)
    assert time.process_time() - start < 5  # 0.3 s measured; a bootstrap takes a minute
