from itertools import accumulate

import pytest
from measures import percentile, steady
from peers.peer import Reply


def reply(first_s: float, *gaps_s: float) -> Reply:
    return Reply(sent_s=0.0, stamps_s=list(accumulate(gaps_s, initial=first_s)))


def test_percentiles_lie_between_the_nearest_values() -> None:
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert percentile([0.0, 1.0], 95) == pytest.approx(0.95)
    assert percentile([7.0], 99) == 7.0


def test_times_of_a_reply() -> None:
    made = reply(0.5, 0.25, 0.125)
    assert made.ttft_s == 0.5
    assert made.gaps_s == [0.25, 0.125]


def test_only_the_time_in_which_all_streams_decode_counts() -> None:
    early = reply(1.0, 5.0, 1.0, 1.0, 1.0)  # tokens at 1, 6, 7, 8, 9
    late = reply(6.0, 1.0, 1.0)  # at 6, 7, 8
    values = steady([early, late])
    assert values["all streams, tokens/s"] == 2.0
    assert values["TBT p99, ms"] == 1000.0
