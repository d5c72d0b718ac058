"""What has room is placed, and only what never has is refused."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sps2.common.errors import Invalid
from sps2.common.messages import Room
from sps2.common.spans import pages_for
from sps2.services.scheduler.events import RoomSeen

from .test_core import PAGE, cluster, launched, rejected, submit


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 2500), st.integers(1, 900)
)
@example([100, 100], 120 * PAGE, 60 * PAGE)
@example([40, 40, 40, 40], 1000, 400)
@settings(deadline=None)
def test_what_fits_all_pages_together_is_placed(free: list[int], prompt: int, answer: int) -> None:
    """The answer, with the end of the prompt, is to be on one shard: leases do not grow yet."""
    named = {f"decode-{index}": pages for index, pages in enumerate(free)}
    core = cluster(decode=len(free))
    core.handle(RoomSeen(Room(named, named)), 0)
    actions = submit(core, "r", prompt, answer)
    last = (prompt - 1) % PAGE + 1
    fits = pages_for(prompt + answer, PAGE) <= sum(free)
    if not fits or pages_for(last + answer, PAGE) > max(free):
        assert isinstance(rejected(actions).error, Invalid)
        return
    places = launched(actions).plan.placements
    assert [position for each in places for position in range(*each.span)] == list(range(prompt))
    assert all(0 < each.pages <= named[each.shard] for each in places)
    assert sum(each.pages for each in places) == pages_for(prompt + answer, PAGE)
