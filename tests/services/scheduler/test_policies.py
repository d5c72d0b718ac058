"""What each policy claims, in virtual time."""

import random
from statistics import fmean

import pytest

from sps2.common.config import Scheduler
from sps2.common.messages import Room
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import Joined, RoomSeen, Submitted
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.plan import Work
from sps2.services.scheduler.policies import POLICIES

from .simulated import SCHEMES, Arrival, slowdowns, ttfts
from .test_core import shard


def heavy_tail(seed: int, count: int = 60) -> list[Arrival]:
    """Many short prompts and a few long ones, which are most of the work."""
    draw = random.Random(seed)
    arrivals, at_s = [], 0.0
    for _ in range(count):
        at_s += draw.expovariate(3.0)
        arrivals.append(Arrival(at_s, min(4000, round(40 * draw.paretovariate(0.8)))))
    return arrivals


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("seed", "chunk_tokens"), [(0, 0), (1, 0), (2, 100)])
def test_all_have_their_first_token_in_the_end(policy: str, seed: int, chunk_tokens: int) -> None:
    arrivals = heavy_tail(seed)
    took = ttfts(policy, arrivals, chunk_tokens=chunk_tokens)
    least = [SCHEMES.alone_s(tokens) / 2 for _, tokens, _ in arrivals]
    assert all(each >= shortest * 0.99 for each, shortest in zip(took, least, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_sps2_has_a_smaller_mean_slowdown_than_fcfs_on_a_heavy_tail(seed: int) -> None:
    arrivals = heavy_tail(seed)
    assert fmean(slowdowns("sps2", arrivals)) < 0.5 * fmean(slowdowns("fcfs", arrivals))


@pytest.mark.parametrize("policy", ["sps2", "lars"])
def test_a_short_prompt_does_not_wait_for_a_long_one(policy: str) -> None:
    short_s, long_s = (ttfts(policy, [Arrival(0.0, tokens)])[0] for tokens in (64, 4000))
    shorts = [Arrival(0.3 + 0.5 * number, 64) for number in range(8)]
    took = ttfts(policy, [Arrival(0.0, 4000), *shorts])
    assert max(took[1:]) < 2.5 * short_s + 0.5 * (policy == "lars")
    assert took[0] < long_s + 8 * short_s + 0.3


def test_with_fcfs_it_does() -> None:
    long, short = ttfts("fcfs", [Arrival(0.0, 4000), Arrival(0.3, 64)])
    assert short > long - 0.3


def crowded(policy: str) -> float:
    """How many times longer than alone a long prompt takes while short ones take all shards."""
    short_s, long_s = (ttfts(policy, [Arrival(0.0, tokens)])[0] for tokens in (64, 1000))
    shorts = [Arrival(number * short_s / 2, 64) for number in range(round(18 * long_s / short_s))]
    return ttfts(policy, [Arrival(0.1, 1000), *shorts])[0] / long_s


@pytest.mark.parametrize("policy", ["sps2", "lars"])
def test_a_long_prompt_does_not_starve_under_a_stream_of_short_ones(policy: str) -> None:
    """It gets an eighth of the time at least."""
    assert crowded(policy) < 8.5


@pytest.mark.parametrize("seed", range(3))
def test_lars_bounds_relative_slack(seed: int) -> None:
    """By how much the worst request misses its deadline, relative to it."""
    arrivals = heavy_tail(seed)

    def worst(policy: str) -> float:
        took = ttfts(policy, arrivals)
        return max(
            each / max(1.5 * SCHEMES.alone_s(tokens), 0.5)
            for each, (_, tokens, _) in zip(took, arrivals, strict=True)
        )

    assert worst("lars") < worst("fcfs")


def flooded(policy: str, caller: str) -> tuple[float, float]:
    """How many times longer than alone one prompt takes on average beside fifty of another
    caller's, and when the last of all has its first token."""
    (alone_s,) = ttfts(policy, [Arrival(0.0, 1000)])
    flood = [Arrival(0.0, 1000, "flood") for _ in range(50)]
    others = [Arrival((4 * number + 0.3) * alone_s, 1000, caller) for number in range(8)]
    took = ttfts(policy, [*flood, *others])
    ends = [each.at_s + took_s for each, took_s in zip([*flood, *others], took, strict=True)]
    return fmean(took[len(flood) :]) / alone_s, max(ends)


@pytest.mark.parametrize("policy", ["sps2", "lars"])
def test_callers_share_the_cluster(policy: str) -> None:
    """A caller with few requests does not wait for those that another has in line."""
    fair, last_s = flooded(policy, "other")
    unfair, last_of_one_s = flooded(policy, "flood")
    assert fair < 3.5
    assert unfair > 10
    assert last_s == pytest.approx(last_of_one_s), "the work is the same"


@pytest.mark.parametrize("policy", ["sps2", "lars"])
def test_a_long_prompt_of_one_caller_does_not_starve_beside_short_ones_of_another(
    policy: str,
) -> None:
    short_s, long_s = (ttfts(policy, [Arrival(0.0, tokens)])[0] for tokens in (64, 1000))
    shorts = [
        Arrival(number * short_s / 2, 64, "a") for number in range(round(18 * long_s / short_s))
    ]
    assert ttfts(policy, [Arrival(0.1, 1000, "b"), *shorts])[0] / long_s < 8.5


def test_an_estimate_for_a_caller_without_requests() -> None:
    """It would come after one request of each other caller, not after all."""
    core = Core(POLICIES["sps2"](Scheduler(), SCHEMES), Fleet(1, 1), 99)
    core.handle(Joined(shard("prefill", 0)), 0.0)
    core.handle(Joined(shard("decode", 0, 100_000)), 0.0)
    core.handle(RoomSeen(Room({"decode-0": 100_000}, {"decode-0": 100_000})), 0.0)
    for number in range(50):
        core.handle(Submitted(Work(f"r{number}", 1000, 16, caller="flood")), 0.0)
    core.handle(Submitted(Work("other", 1000, 16, caller="other")), 0.0)
    work_s = SCHEMES.alone_s(1000)
    new = core.forecast(Work("new", 1000, 16, caller="new"), (), 0.1)
    assert 0.9 * work_s < new.queue_s < 3.1 * work_s
    same = core.forecast(Work("new", 1000, 16, caller="flood"), (), 0.1)
    assert same.queue_s > 40 * work_s
