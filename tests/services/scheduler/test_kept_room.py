"""Room for KV that preempting policies keep for requests that wait for it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.common.messages import Room
from sps2.services.scheduler.actions import Launch
from sps2.services.scheduler.events import Ended, Granted, Prefilled, RoomSeen
from sps2.services.scheduler.policies.fcfs import OVERTAKINGS

from .test_core import PAGE
from .test_sps2 import ask, cluster

PAGES = 1000
LATE_S = 1000.0
"""Whoever comes then is less urgent than a long prompt that has waited from the start."""


class Pool:
    """A cluster whose KV is on one shard, or on two of half the size, as its directory sees it."""

    def __init__(self, mixed: int = 0) -> None:
        self.core = (
            cluster(mixed=mixed, pages=PAGES // mixed)
            if mixed
            else cluster(prefill=1, decode=1, pages=PAGES)
        )
        shards = [f"mixed-{n}" for n in range(mixed)] or ["decode-0"]
        self.total = {shard: PAGES // len(shards) for shard in shards}
        self.held: dict[str, dict[str, int]] = {}

    def ask(self, request: str, pages: int, at_s: float = 0.0) -> list[str]:
        """Who starts when a request comes that needs so many pages; their prefill ends at once."""
        return self._started(ask(self.core, request, pages * PAGE - 16, at_s), at_s)

    def end(self, request: str, at_s: float = 0.0) -> list[str]:
        self.held.pop(request)
        """Who starts when a request ends."""
        ended = self.core.handle(Ended(request), at_s)
        return self._started([*ended, *self.core.handle(RoomSeen(self._room()), at_s)], at_s)

    def pages(self, *requests: str) -> int:
        return sum(sum(self.held[each].values()) for each in requests)

    def waits_for(self, request: str) -> str:
        return next(each for each in self.core.requests(0) if each.request == request).waits_for

    def _room(self) -> Room:
        free = dict(self.total)
        for pages in self.held.values():
            for shard, count in pages.items():
                free[shard] -= count
        return Room(free, self.total)

    def _started(self, actions: list, at_s: float) -> list[str]:  # type: ignore[type-arg]
        found = []
        for action in actions:
            if isinstance(action, Launch):
                found.append(action.request)
                self.held[action.request] = {
                    place.shard: place.pages for place in action.plan.placements
                }
                more = self.core.handle(Granted(action.request, self._room()), at_s)
                more += self.core.handle(Prefilled(action.request), at_s)
                found += self._started(more, at_s)
        return found


def overtaken(mixed: int = 0) -> Pool:
    """A pool in which `large` waits for 750 of 1,000 pages, 600 of which `first` has; so many have
    passed it that its room is kept."""
    pool = Pool(mixed)
    assert pool.ask("first", 600) == ["first"]
    assert pool.ask("large", 750) == []
    for number in range(OVERTAKINGS):
        assert pool.ask(f"early {number}", 5) == [f"early {number}"]
        pool.end(f"early {number}")
    return pool


@pytest.mark.parametrize("mixed", [0, 2])
def test_less_urgent_requests_start_beside_a_request_that_waits_for_room(mixed: int) -> None:
    pool = overtaken(mixed)
    assert pool.ask("beside it", 5, LATE_S) == ["beside it"]
    assert pool.ask("too large", 250, LATE_S) == [], "750 + 5 + 250 pages are more than there are"
    assert pool.waits_for("too large") == "room for its KV besides that of large"
    assert pool.ask("also beside it", 100, LATE_S) == ["also beside it"]
    assert pool.end("first", LATE_S) == ["large"]


def test_what_started_before_room_is_kept_does_not_count() -> None:
    """`large` waits for it anyway."""
    pool = Pool()
    assert pool.ask("first", 600) == ["first"]
    assert pool.ask("large", 750) == []
    assert pool.ask("second", 300) == ["second"]
    for number in range(OVERTAKINGS - 1):
        pool.ask(f"early {number}", 5)
        pool.end(f"early {number}")
    assert pool.ask("beside it", 50, LATE_S) == ["beside it"]
    assert pool.end("first", LATE_S) == []
    assert pool.end("second", LATE_S) == ["large"]


@given(st.lists(st.tuples(st.integers(2, 400), st.booleans()), max_size=60))
@settings(deadline=None, max_examples=30)
def test_whatever_passes_a_request_later_leaves_it_its_room(
    sizes: list[tuple[int, bool]],
) -> None:
    pool = overtaken()
    pool.ask("last", 2, LATE_S)
    for number, (pages, ends) in enumerate(sizes):
        started = pool.ask(str(number), pages, LATE_S)
        late = [each for each in pool.held if each not in ("first", "last")]
        assert pool.pages(*late) <= PAGES - 750 - pool.pages("last")
        if ends and started:
            pool.end(started[0], LATE_S)
    assert "large" in pool.end("first", LATE_S)


def test_a_large_request_leaves_room_for_small_ones_while_they_run() -> None:
    pool = Pool()
    assert pool.ask("small", 5) == ["small"]
    assert pool.ask("large", 985) == [], "10 of 1,000 pages would be left"
    assert pool.waits_for("large") == "room for its KV besides that of short requests"
    assert pool.ask("other", 960) == ["other"], "35 are left"
    pool.end("other")
    assert pool.end("small") == ["large"]


def test_large_requests_beside_each_other_take_all_room() -> None:
    pool = Pool()
    for number in range(4):
        assert pool.ask(str(number), 250) == [str(number)]


def test_small_requests_do_not_pass_a_large_one_for_ever() -> None:
    pool = Pool()
    assert pool.ask("small", 5) == ["small"]
    assert pool.ask("large", 985) == []
    for number in range(OVERTAKINGS):
        started = pool.ask(str(number), 5)
        assert str(number) in started
        if "large" in started:
            break
        pool.end(str(number))
    assert "large" in pool.held or pool.ask("one more", 2) == ["large", "one more"]
