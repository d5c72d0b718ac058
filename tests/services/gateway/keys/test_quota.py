"""Buckets and accounts, on a clock of the test's."""

import pytest
from msgspec.structs import replace

from sps2.common.errors import Invalid, Refused
from sps2.common.messages import Placed, Sampling, Scheme
from sps2.services.gateway.generate import Job, Record
from sps2.services.gateway.keys.quota import Account, Bucket


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_bucket_fills_steadily_and_no_higher(clock: Clock) -> None:
    bucket = Bucket("request", clock)
    bucket.limit(60)
    for _ in range(60):
        bucket.take(1)
    with pytest.raises(Refused) as refused:
        bucket.take(1)
    assert refused.value.retry_after_s == pytest.approx(1.0)
    assert "60 requests a minute" in str(refused.value)
    clock.now_s += 0.99
    with pytest.raises(Refused):
        bucket.take(1)
    clock.now_s += 0.02
    bucket.take(1)
    clock.now_s += 3600
    assert bucket.left() == 60


def test_no_limit(clock: Clock) -> None:
    bucket = Bucket("request", clock)
    for _ in range(10_000):
        bucket.take(1000)
    assert bucket.wait_s(10**9) == 0


def test_a_new_limit_keeps_what_was_used(clock: Clock) -> None:
    bucket = Bucket("token", clock)
    bucket.limit(100)
    bucket.take(80)
    bucket.limit(200)
    assert bucket.left() == pytest.approx(120)
    bucket.limit(50)
    assert bucket.left() == pytest.approx(-30)
    clock.now_s += 36
    assert bucket.left() == pytest.approx(0)


def test_more_than_there_ever_is(clock: Clock) -> None:
    bucket = Bucket("token", clock)
    bucket.limit(100)
    with pytest.raises(Invalid, match="may take 101 tokens; the API key is for 100 a minute"):
        bucket.take(101)


def spend(account: Account, prompt: int, wanted: int, generated: int, placed: bool = True) -> None:
    """One answer that was to have `wanted` tokens and got `generated`."""
    job = Job("r", tuple(range(prompt)), Sampling(max_tokens=wanted, seed=0))
    record = Record(0.0)
    with account.spending([job.prompt], [job], [record]):
        record.tokens = generated
        if placed:
            record.placed = Placed(0, "d", "a", 1, (), "exact", Scheme(), {})


def test_tokens_are_held_and_what_was_not_used_is_given_back(clock: Clock) -> None:
    account = Account("alice", clock)
    account.limit(0, 100)
    spend(account, prompt=20, wanted=60, generated=5)
    assert account.headers()["x-ratelimit-remaining-tokens"] == "75"
    spend(account, prompt=40, wanted=30, generated=0, placed=False)  # refused before any work
    assert account.headers()["x-ratelimit-remaining-tokens"] == "75"
    with pytest.raises(Refused) as refused:
        spend(account, prompt=40, wanted=50, generated=0)
    assert refused.value.retry_after_s == pytest.approx(9.0)
    assert account.headers() == {
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "75",
        "x-ratelimit-reset-tokens": "15s",
    }
    clock.now_s += refused.value.retry_after_s
    spend(account, prompt=40, wanted=50, generated=50)
    assert account.headers()["x-ratelimit-remaining-tokens"] == "0"


def test_an_answer_of_no_stated_length_is_within_a_minutes_tokens(clock: Clock) -> None:
    """It holds a share of them while it runs, and is charged for what it took."""
    account = Account("alice", clock)
    account.limit(0, 800)
    job = Job("r", tuple(range(40)), Sampling(max_tokens=8000, seed=0), open_ended=True)
    (bounded,) = account.own([job.prompt], [job])
    assert bounded.sampling.max_tokens == 760
    stated = Job("s", (1,), Sampling(max_tokens=8000, seed=0))
    assert account.own([stated.prompt], [stated]) == (replace(stated, caller=account.name),)
    record = Record(0.0, Placed(0, "d", "a", 1, (), "exact", Scheme(), {}))
    with account.spending([bounded.prompt], [bounded], [record]):
        assert account.headers()["x-ratelimit-remaining-tokens"] == "660"
        record.tokens = 300
    assert account.headers()["x-ratelimit-remaining-tokens"] == "460"


def test_one_is_told_in_the_singular(clock: Clock) -> None:
    bucket = Bucket("request", clock)
    bucket.limit(1)
    bucket.take(1)
    with pytest.raises(Refused, match="only request of this minute is used up: try"):
        bucket.take(1)
