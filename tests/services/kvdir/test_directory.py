"""Leases never exceed the pools; everything comes back; leaks are seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sps2.common.errors import Invalid, Refused
from sps2.common.messages import Holding, Placement
from sps2.common.spans import Span
from sps2.services.kvdir.directory import Directory


def place(shard: str, pages: int) -> Placement:
    return Placement(shard, Span(0, pages * 16), pages)


def directory(**pools: int) -> Directory:
    made = Directory()
    for shard, pages in pools.items():
        made.announce(shard, f"{shard}/1", pages, 16, ())
    return made


def test_a_lease_takes_pages_and_its_end_gives_them_back() -> None:
    kv = directory(a=10, b=4)
    kv.reserve("r", 0, (place("a", 7), place("b", 4)))
    assert kv.room().free == {"a": 3, "b": 0}
    kv.commit("r", 0)
    assert kv.leases().leases[0].committed
    kv.release("r", 0)
    kv.release("r", 0)
    assert kv.room().free == {"a": 10, "b": 4}


def test_too_large_a_lease_takes_nothing() -> None:
    kv = directory(a=10, b=4)
    with pytest.raises(Refused, match="b has no room"):
        kv.reserve("r", 0, (place("a", 7), place("b", 5)))
    with pytest.raises(Refused, match="ghost"):
        kv.reserve("r", 0, (place("ghost", 1),))
    assert kv.room().free == {"a": 10, "b": 4}
    assert kv.leases().leases == ()


def test_a_lease_is_granted_once_per_epoch() -> None:
    kv = directory(a=10)
    kv.reserve("r", 0, (place("a", 1),))
    with pytest.raises(Invalid):
        kv.reserve("r", 0, (place("a", 1),))
    kv.reserve("r", 1, (place("a", 1),))
    with pytest.raises(Invalid):
        kv.commit("r", 2)
    with pytest.raises(Invalid):
        kv.reserve("s", 0, ())


def test_a_restarted_directory_learns_from_inventories_and_restored_leases() -> None:
    kv = Directory()
    kv.announce("a", "a/1", 10, 16, (Holding("r", 0, Span(0, 64), 4),))
    assert kv.room().free == {"a": 6}
    kv.reserve("r", 0, (place("a", 4),), restore=True)
    assert kv.room().free == {"a": 6}
    kv.release("r", 0)
    assert kv.room().free == {"a": 10}


def test_a_lease_is_restored_while_the_one_before_is_still_there() -> None:
    """The holder lost its link, and is quicker than whoever notices that here."""
    kv = directory(a=10)
    kv.reserve("r", 0, (place("a", 4),))
    kv.commit("r", 0, {"a": (b"1", b"2")})
    kv.reserve("r", 0, (place("a", 6),), restore=True, own={"a": (b"1", b"2")})
    assert kv.room().free == {"a": 4}
    assert [lease.placements for lease in kv.leases().leases] == [(place("a", 6),)]
    kv.release("r", 0)
    assert kv.room().free == {"a": 10}


def test_what_stays_without_a_lease_over_two_reports_has_leaked() -> None:
    kv = directory(a=10)
    held = (Holding("r", 0, Span(0, 64), 4),)
    kv.reserve("r", 0, (place("a", 4),))
    kv.report("a", "a/1", held)
    kv.release("r", 0)
    kv.report("a", "a/1", held)
    assert kv.leases().leaked_pages == 0
    kv.report("a", "a/1", held)
    assert kv.leases().leaked_pages == 4
    kv.report("a", "a/1", ())
    assert kv.leases().leaked_pages == 0


def test_an_older_life_of_a_shard_changes_nothing() -> None:
    kv = directory(a=10)
    kv.announce("a", "a/2", 20, 16, ())
    kv.withdraw("a", "a/1")
    assert kv.room().total == {"a": 20}
    with pytest.raises(Invalid):
        kv.report("a", "a/1", ())
    kv.withdraw("a", "a/2")
    assert kv.room().total == {}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6), st.booleans()), max_size=60))
def test_granted_pages_never_exceed_the_pool(steps: list[tuple[int, int, bool]]) -> None:
    kv = directory(a=8, b=8)
    for request, pages, reserve in steps:
        try:
            if reserve:
                kv.reserve(str(request), 0, (place("a", pages), place("b", 1)))
            else:
                kv.release(str(request), 0)
        except (Refused, Invalid):
            continue
        assert all(free >= 0 for free in kv.room().free.values())
    for request in range(10):
        kv.release(str(request), 0)
    assert kv.room().free == {"a": 8, "b": 8}


class Books:
    """Free pages, counted anew from all that happened."""

    def __init__(self) -> None:
        self.leases: dict[tuple[str, int], tuple[Placement, ...]] = {}
        self.held: dict[str, dict[tuple[str, int], int]] = {}

    def free(self, pages: int) -> dict[str, int]:
        return {
            shard: pages
            - sum(p.pages for places in self.leases.values() for p in places if p.shard == shard)
            - sum(count for key, count in held.items() if key not in self.leases)
            for shard, held in self.held.items()
        }


events = st.tuples(
    st.sampled_from(["announce", "report", "withdraw", "reserve", "restore", "release"]),
    st.sampled_from("ab"),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), max_size=3),
)


@given(st.lists(events, max_size=40))
def test_sums_are_what_a_recount_finds(
    script: list[tuple[str, str, int, list[tuple[int, int]]]],
) -> None:
    kv, books = Directory(), Books()
    for event, shard, number, sizes in script:
        request, held = str(number), {(str(each), 0): pages for each, pages in sizes}
        holdings = [Holding(*key, Span(0, 16), pages) for key, pages in held.items()]
        places = (place("a", number + 1), place("b", 1))
        try:
            match event:
                case "announce":
                    kv.announce(shard, f"{shard}/1", 12, 16, holdings)
                    books.held[shard] = dict(held)
                case "report":
                    kv.report(shard, f"{shard}/1", holdings)
                    books.held[shard] = dict(held)
                case "withdraw":
                    kv.withdraw(shard, f"{shard}/1")
                    books.held.pop(shard, None)
                case "release":
                    kv.release(request, 0)
                    books.leases.pop((request, 0), None)
                    for mine in books.held.values():
                        mine.pop((request, 0), None)
                case _:
                    kv.reserve(request, 0, places, restore=event == "restore")
                    books.leases[request, 0] = places
        except (Refused, Invalid):
            pass
        assert kv.room().free == books.free(12)


def test_a_lease_grows_while_there_is_room() -> None:
    kv = directory(a=10, b=4)
    kv.reserve("r", 0, (place("b", 2), place("a", 7)))
    kv.extend("r", 0, "a", 2)
    assert kv.room().free == {"a": 1, "b": 2}
    assert [each.pages for each in kv.leases().leases[0].placements] == [2, 9]
    with pytest.raises(Refused, match="a has no room for 2 more pages"):
        kv.extend("r", 0, "a", 2)
    for request, epoch, shard in (("s", 0, "a"), ("r", 1, "a"), ("r", 0, "c")):
        with pytest.raises(Invalid, match="no lease on"):
            kv.extend(request, epoch, shard, 1)
    kv.release("r", 0)
    assert kv.room().free == {"a": 10, "b": 4}


def test_growth_evicts_idle_cached_pages() -> None:
    kv = directory(a=4)
    kv.reserve("r", 0, (place("a", 2),))
    kv.commit("r", 0, {"a": (b"1", b"2")})
    kv.release("r", 0)
    kv.reserve("s", 0, (place("a", 1),))
    assert kv.find((b"1", b"2"))
    kv.extend("s", 0, "a", 3)
    assert not kv.find((b"1", b"2"))
    assert kv.room().free == {"a": 0}
