"""Progress of a prefill: what is told, how often, and when its end is expected."""

from sps2.common.messages import Progress
from sps2.services.scheduler.prefill_progress import Eta


def test_ranks_are_added_up_and_the_end_follows() -> None:
    pace = Eta(tokens=1000, cached=200, since_s=10.0)
    assert pace.advance(0, 50, 10.1) is None
    assert pace.advance(1, 150, 11.0) == Progress(400, 1000, 200, 3000.0)
    assert pace.advance(0, 250, 12.0) == Progress(600, 1000, 200, 2000.0)


def test_not_more_often_than_four_times_a_second() -> None:
    pace = Eta(4000, 0, 0.0)
    told = [pace.advance(step % 3, step, step / 100) for step in range(1, 200)]
    assert 5 <= sum(each is not None for each in told) <= 8


def test_no_telling_before_anything_is_computed() -> None:
    assert Eta(100, 60, 0.0).advance(0, 0, 1.0) == Progress(60, 100, 60, None)
