"""Prompts whose beginning is on disks: it is read where that is predicted to be faster."""

import pytest
from msgspec.structs import replace

from sps2.cli.simulator.replaying import DirectoryReplay
from sps2.common.config import Sharing
from sps2.common.messages import CachedRun, Placement, Room
from sps2.common.spans import Span
from sps2.services.scheduler.actions import Launch
from sps2.services.scheduler.cached_prefix import hashes_from_disk, shared_hashes, usable
from sps2.services.scheduler.event_log import Entry
from sps2.services.scheduler.events import (
    Ended,
    Event,
    Found,
    Granted,
    ReadAhead,
    ReadingAhead,
    RoomSeen,
    Shareable,
)
from sps2.services.scheduler.plan import Plan
from sps2.services.scheduler.rules import broken_rule

from .test_cached_prefix import ask, found
from .test_core import PAGE, cluster, launched, room

FAST_S, SLOW_S = 1e-9, 10.0
TEXT = "abcdefgh"
NAMES = tuple(TEXT[: count + 1].encode() for count in range(len(TEXT)))


def planned(*runs: CachedRun, free: int = 64) -> Plan:
    core = cluster(sharing=Sharing(link_gbit=1e6))
    core.handle(RoomSeen(Room({"decode-0": free, "decode-1": 64}, room(2, 64).total)), 0)
    ask(core, "r", TEXT, 20)
    plan = launched(found(core, "r", *runs)).plan
    request = core.state().requests[0]
    core.handle(Ended("r"), 0)
    assert broken_rule(plan, request.work, core.fleet) == ""
    return plan


def test_pages_on_disk_are_shared_and_take_free_pages() -> None:
    plan = planned(CachedRun("decode-0", 2, 1), CachedRun("decode-0", 4, 0, FAST_S))
    assert plan.prefix.pages == 6
    place = next(each for each in plan.placements if each.shard == "decode-0")
    assert place.shared == (Span(0, 2 * PAGE), Span(2 * PAGE, 6 * PAGE))
    assert place.from_disk == (Span(2 * PAGE, 6 * PAGE),)
    assert plan.takes["decode-0"] == place.pages + 1 + 4
    assert shared_hashes(plan.placements, NAMES, PAGE) == {"decode-0": NAMES[:2]}
    assert hashes_from_disk(plan.placements, NAMES, PAGE) == {"decode-0": NAMES[2:6]}


def test_shards_read_at_the_same_time_and_the_plan_counts_the_slowest() -> None:
    runs = CachedRun("decode-0", 4, 0, 1e-6), CachedRun("decode-1", 2, 0, 4e-6)
    plan = planned(*runs)
    assert plan.prefix.pages == 6
    assert plan.prefix.read_s == 8e-6
    assert plan.predicted_s == plan.partition.predicted_s + 8e-6


def test_what_is_read_slower_than_computed_is_computed() -> None:
    memory = CachedRun("decode-0", 2, 2)
    plan = planned(memory, CachedRun("decode-0", 4, 0, SLOW_S))
    assert (plan.prefix.pages, plan.prefix.read_s) == (2, 0.0)
    assert all(not place.from_disk for place in plan.placements)
    assert planned(CachedRun("decode-0", 4, 0, SLOW_S), memory).prefix.pages == 0


def test_what_finds_no_room_in_memory_is_computed() -> None:
    disk = CachedRun("decode-0", 6, 0, FAST_S)
    assert planned(disk, free=6).prefix.pages == 6
    plan = planned(disk, free=5)
    assert (plan.prefix.pages, plan.takes.get("decode-0", 0) <= 5) == (0, True)
    assert planned(CachedRun("decode-0", 1, 1), disk, free=5).prefix.pages == 1


def test_a_token_is_left_to_compute() -> None:
    core = cluster()
    run = CachedRun("decode-1", 8, 0, FAST_S)
    prefix = usable((run,), 8 * PAGE, core.fleet)
    assert prefix.runs == (replace(run, pages=7),)
    assert prefix.placed("decode-1", Span(112, 128), 2) == Placement(
        "decode-1", Span(112, 128), 2, (Span(0, 112),), (Span(0, 112),)
    )


def test_the_directory_of_a_replay_follows() -> None:
    """Pages from disk are leased, then cached, and shared by the next request."""
    core = cluster(sharing=Sharing(link_gbit=1e6))
    directory = DirectoryReplay(core.state())
    free = dict(room(2, 64).free)

    def follow(event: Event, *actions: Launch) -> None:
        directory.follow(Entry(0.0, event, actions))

    def launch(request: str, *runs: CachedRun) -> Launch:
        submitted = ask(core, request, TEXT, 20)
        assert submitted
        work = core.state().requests[-1].work
        directory._works[request] = work
        action = launched(found(core, request, *runs))
        follow(Found(request, runs), action)
        return action

    def granted(request: str, plan: Plan) -> None:
        for shard, pages in plan.takes.items():
            free[shard] -= pages
        now = Room(dict(free), room(2, 64).total)
        core.handle(Granted(request, now), 0)
        follow(Granted(request, now))

    first = launch("a", CachedRun("decode-0", 6, 0, FAST_S)).plan
    granted("a", first)
    core.handle(Shareable("a"), 0)
    follow(Shareable("a"))
    second = launch("b", CachedRun("decode-0", 6, 0), CachedRun(first.owner, 2, 0)).plan
    assert second.prefix.pages == 8
    granted("b", second)
    for request in "ab":
        core.handle(Ended(request), 0)
        follow(Ended(request))
    follow(RoomSeen(room(2, 64)))
    assert directory.finish().differing == []


@pytest.mark.parametrize("is_cached", [True, False])
def test_the_directory_of_a_replay_reads_ahead(is_cached: bool) -> None:
    core = cluster(sharing=Sharing(link_gbit=1e6))
    directory = DirectoryReplay(core.state())
    whole = room(2, 64)
    less = Room({**whole.free, "decode-0": 58}, whole.total)
    spans = (Span(0, 6 * PAGE),)
    places = (Placement("decode-0", Span(6 * PAGE, 6 * PAGE), 0, spans, spans),)
    names = {"decode-0": NAMES[:6]}
    for event in (
        ReadingAhead("r", places, names),
        RoomSeen(less),
        ReadAhead("r", is_cached),
        RoomSeen(whole),
    ):
        assert not core.handle(event, 0)
        directory.follow(Entry(0.0, event, ()))
    assert directory.finish().differing == []
    found = directory._directory.find(NAMES[:6])
    assert found == ((CachedRun("decode-0", 6, 6),) if is_cached else ())
