"""Who waits, who passes, and for how long: the queue of the scheduler."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.common.errors import PeerLost
from sps2.common.messages import Room
from sps2.services.scheduler.actions import Find, Reject
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import (
    Ended,
    Granted,
    Joined,
    Lost,
    Prefilled,
    Returned,
    RoomSeen,
    Tick,
)
from sps2.services.scheduler.policies.fcfs import OVERTAKINGS

from .test_cached_prefix import ask, found
from .test_core import PAGE, cluster, launched, rejected, room, shard, submit

PATIENCE_S = 60.0


def lose(core: Core, role: str, index: int) -> None:
    core.handle(Lost(f"{role}-{index}", f"{role}-{index}/0"), 0)


def run_out(core: Core, request: str, free: Room) -> list[str]:
    """A launched request runs to its end; who is launched then."""
    core.handle(Granted(request, free), 0)
    launches = [*core.handle(Prefilled(request), 0), *core.handle(Ended(request), 0)]
    return [each.request for each in launches]


def test_a_forced_degree_with_a_shard_missing_lets_others_pass() -> None:
    core = cluster()
    lose(core, "prefill", 1)
    assert submit(core, "two", 60, sp=2) == []
    assert launched(submit(core, "other", 60)).request == "other"
    run_out(core, "other", room(2, 64))
    core.handle(Joined(shard("prefill", 1, life=1)), 0)
    assert [status.stage for status in core.requests(0)] == ["reserving"]


def test_what_fits_the_complete_fleet_only_lets_others_pass() -> None:
    core = cluster(decode=2, pages=4)
    lose(core, "decode", 1)
    core.handle(RoomSeen(room(1, 4)), 0)
    assert submit(core, "large", 60, 16) == []
    assert launched(submit(core, "small", 16, 1)).request == "small"


def test_who_waits_for_a_shard_that_stays_away_is_told_so() -> None:
    core = cluster()
    lose(core, "prefill", 1)
    submit(core, "two", 60, sp=2)
    assert core.wakes_at() == PATIENCE_S
    assert core.handle(Tick(), PATIENCE_S / 2) == []
    error = rejected(core.handle(Tick(), PATIENCE_S)).error
    assert isinstance(error, PeerLost)
    assert "sp_degree 2" in str(error)
    assert "1 of 2 prefill" in str(error)
    assert core.wakes_at() is None


def test_without_any_shard_a_request_waits_for_one() -> None:
    core = cluster(prefill=1)
    lose(core, "prefill", 0)
    assert submit(core, "a", 60) == []
    assert core.handle(Tick(), PATIENCE_S - 1) == []
    assert launched(core.handle(Joined(shard("prefill", 0, life=1)), PATIENCE_S)).request == "a"


def filled() -> Core:
    """A core whose pools have two pages left, with `large` waiting for more."""
    core = cluster(decode=1, pages=10, max_queue=1000)
    launched(submit(core, "first", 100, 28))
    core.handle(Granted("first", Room({"decode-0": 2}, {"decode-0": 10})), 0)
    core.handle(Prefilled("first"), 0)
    assert submit(core, "large", 100, 28) == []
    return core


def test_small_requests_pass_one_that_waits_for_room() -> None:
    core = filled()
    assert launched(submit(core, "small", 16, 16)).request == "small"
    assert submit(core, "also large", 40, 1) == []


def test_so_many_pass_and_then_room_is_kept() -> None:
    core = filled()
    free = Room({"decode-0": 2}, {"decode-0": 10})
    for number in range(OVERTAKINGS):
        assert launched(submit(core, str(number), 16, 16)).request == str(number)
        run_out(core, str(number), free)
    assert submit(core, "one too many", 16, 16) == []
    core.handle(RoomSeen(room(1, 10)), 0)
    stages = {status.request: status.stage for status in core.requests(0)}
    assert stages == {"first": "transfer", "large": "reserving", "one too many": "queued"}


def test_nobody_passes_one_that_waits_for_busy_shards() -> None:
    core = cluster()
    launched(submit(core, "busy", 60))
    assert submit(core, "wide", 60, sp=2) == []
    assert submit(core, "short", 60) == []


@given(st.lists(st.tuples(st.integers(1, 150), st.integers(1, 40)), min_size=1, max_size=150))
@settings(deadline=None, max_examples=30)
def test_nobody_is_overtaken_for_ever(sizes: list[tuple[int, int]]) -> None:
    """Whatever comes while a large request waits, no more than the bound run before it."""
    core = filled()
    total = {"decode-0": 10}
    held: dict[str, int] = {}
    passed = 0

    def take(actions: list) -> None:  # type: ignore[type-arg]
        nonlocal passed
        for action in actions:
            assert not isinstance(action, Find | Reject)
            held[action.request] = sum(place.pages for place in action.plan.placements)
            passed += action.request != "large"
            assert sum(held.values()) <= 2
            more = core.handle(Granted(action.request, left()), 0)
            more += core.handle(Prefilled(action.request), 0)
            del held[action.request]
            take([*more, *core.handle(RoomSeen(left()), 0), *core.handle(Ended(action.request), 0)])

    def left() -> Room:
        return Room({"decode-0": 2 - sum(held.values())}, total)

    for number, (prompt, answer) in enumerate(sizes):
        if prompt + answer <= 10 * PAGE:
            take(submit(core, str(number), prompt, answer))
    assert passed <= OVERTAKINGS


def test_one_that_had_no_lease_rests_and_trusts_the_cache_all_the_same() -> None:
    core = cluster()
    ask(core, "r", "abcd")
    launched(found(core, "r"))
    for at_s in (0.0, 1.0, 2.0):
        assert core.handle(Returned("r", 0.5), at_s) == []
        assert core.wakes_at() == at_s + 0.5
        (find,) = core.handle(Tick(), at_s + 0.5)
        assert isinstance(find, Find)
        launched(found(core, "r"))


def test_a_refusal_makes_nobody_ask_the_directory_again() -> None:
    core = cluster(prefill=1, max_queue=1)
    ask(core, "running", "abcdefgh")
    launched(found(core, "running"))
    assert ask(core, "waiting", "xyz") != []
    found(core, "waiting")
    rejected(ask(core, "one too many", "x"))
    assert core.handle(Ended("one too many"), 0) == []
