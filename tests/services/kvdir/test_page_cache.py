"""Cached pages are shared while leases use them, evicted when room is needed, and never before."""

from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sps2.common.errors import Refused
from sps2.common.messages import CachedRun, Holding, Placement
from sps2.common.page_hashes import page_hashes
from sps2.common.spans import Span
from sps2.services.kvdir.directory import Directory

PAGES = 8


def hashes_of(text: str) -> tuple[bytes, ...]:
    """One page a letter."""
    return page_hashes(b"", text.encode("utf-32-le"), 1)


def place(shard: str, start: int, pages: int, *shared: Span) -> Placement:
    return Placement(shard, Span(start, start + pages), pages, shared)


def directory(**pools: int) -> tuple[Directory, dict[str, list[bytes]]]:
    made = Directory()
    return made, {s: made.announce(s, f"{s}/1", pages, 1, ()) for s, pages in pools.items()}


def cached(kv: Directory, shard: str, text: str, request: str = "r") -> None:
    kv.reserve(request, 0, (place(shard, 0, len(text)),))
    kv.commit(request, 0, {shard: hashes_of(text)})
    kv.release(request, 0)


def test_full_pages_stay_and_count_as_free_until_they_are_used() -> None:
    kv, _ = directory(a=8)
    kv.reserve("r", 0, (place("a", 0, 4),))
    assert kv.commit("r", 0, {"a": hashes_of("abc")}) == {"a": hashes_of("abc")}
    assert kv.room().free == {"a": 4}
    kv.release("r", 0)
    assert kv.room().free == {"a": 8}
    assert kv.find(hashes_of("abxy")) == (CachedRun("a", 2, 2),)
    kv.reserve("s", 0, (place("a", 2, 2, Span(0, 2)),), {"a": hashes_of("ab")})
    assert kv.room().free == {"a": 4}
    assert kv.find(hashes_of("abc")) == (CachedRun("a", 3, 1),)
    assert kv.leases().cached_pages == 3


def test_an_answers_pages_are_added_to_those_of_its_prompt() -> None:
    kv, _ = directory(a=4, b=4)
    kv.reserve("r", 0, (place("a", 0, 2), place("b", 2, 4)))
    kv.commit("r", 0, {"a": hashes_of("ab"), "b": hashes_of("abc")[2:]})
    kv.commit("r", 0, {"b": hashes_of("abcde")[3:]})
    kv.release("r", 0)
    assert kv.find(hashes_of("abcdef")) == (CachedRun("a", 2, 2), CachedRun("b", 3, 3))


def test_the_longest_idle_goes_first_and_of_a_prompt_the_last_page() -> None:
    kv, evicted = directory(a=6)
    cached(kv, "a", "abc")
    cached(kv, "a", "xyz")
    kv.reserve("use", 0, (place("a", 3, 0, Span(0, 3)),), {"a": hashes_of("abc")})
    kv.release("use", 0)
    kv.reserve("s", 0, (place("a", 0, 4),))
    assert evicted["a"] == [*hashes_of("xyz")[::-1], hashes_of("abc")[2]]
    assert kv.find(hashes_of("abc")) == (CachedRun("a", 2, 2),)
    assert kv.leases().evicted_pages == 4


def test_pages_in_use_are_no_room() -> None:
    kv, evicted = directory(a=6)
    cached(kv, "a", "abc")
    kv.reserve("use", 0, (place("a", 2, 1, Span(0, 2)),), {"a": hashes_of("ab")})
    with pytest.raises(Refused, match="no room"):
        kv.reserve("s", 0, (place("a", 0, 4),))
    kv.reserve("s", 0, (place("a", 0, 3),))
    assert evicted["a"] == [hashes_of("abc")[2]]


def test_a_lease_on_pages_that_are_gone_is_refused() -> None:
    kv, _ = directory(a=6, b=6)
    cached(kv, "a", "abc")
    for shared in ({"b": hashes_of("abc")}, {"a": hashes_of("abcd")}):
        with pytest.raises(Refused, match="not where it was"):
            kv.reserve("s", 0, (place("a", 3, 1, Span(0, 3)),), shared)
    kv.withdraw("a", "a/1")
    assert kv.find(hashes_of("abc")) == ()


def test_a_second_copy_is_not_kept() -> None:
    kv, evicted = directory(a=4, b=4)
    kv.reserve("r", 0, (place("a", 0, 2),))
    kv.reserve("s", 0, (place("b", 0, 2),))
    kv.reserve("t", 0, (place("a", 0, 2),))
    kv.commit("r", 0, {"a": hashes_of("ab")})
    assert kv.commit("s", 0, {"b": hashes_of("ab")}) == {"b": ()}
    assert kv.commit("t", 0, {"a": hashes_of("ab")}) == {"a": ()}
    assert evicted == {"a": [], "b": list(hashes_of("ab"))}
    assert kv.room().free == {"a": 0, "b": 2}


def test_what_a_shard_cached_for_a_scheduler_that_failed_is_adopted() -> None:
    kv, evicted = directory(a=4, b=4)
    cached(kv, "a", "ab")
    kv.report("b", "b/1", (), hashes_of("abc"))
    assert evicted["b"] == list(hashes_of("ab"))
    assert kv.find(hashes_of("abc")) == (CachedRun("a", 2, 2), CachedRun("b", 1, 1))


def test_a_restarted_directory_finds_the_cache_again_in_any_order() -> None:
    inventory = (Holding("r", 0, Span(1, 4), 2),)
    for shard_first in (True, False):
        kv = Directory()
        steps = [
            lambda kv=kv: kv.announce("a", "a/1", 8, 1, inventory, hashes_of("abc")),
            lambda kv=kv: kv.reserve(
                "r",
                0,
                (place("a", 1, 3, Span(0, 1)),),
                {"a": hashes_of("a")},
                restore=True,
                own={"a": hashes_of("ab")[1:]},
            ),
        ]
        for step in steps if shard_first else steps[::-1]:
            step()
        assert kv.find(hashes_of("abc")) == (CachedRun("a", 3, 1),)
        assert kv.room().free == {"a": 4}
        kv.release("r", 0)
        assert kv.room().free == {"a": 8}


def test_pages_that_a_shard_does_not_have_are_forgotten() -> None:
    kv, _ = directory(a=4)
    cached(kv, "a", "abc")
    kv.report("a", "a/1", (), (), hashes_of("abc")[1:2])
    assert kv.find(hashes_of("abc")) == (CachedRun("a", 1, 1),)
    assert kv.leases().cached_pages == 2


class Run(NamedTuple):
    """A request as its shard and scheduler know it."""

    shard: str
    text: str
    shared: int
    pages: int
    full: int
    """Pages that are named, the shared ones among them."""
    own: tuple[bytes, ...]


class Cluster(RuleBasedStateMachine):
    """A directory, and shards that do as they are told; a prompt lies on one shard."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = Directory()
        self.named: dict[str, set[bytes]] = {"a": set(), "b": set()}
        self.outbox = {s: self.kv.announce(s, f"{s}/1", PAGES, 1, ()) for s in self.named}
        self.running: dict[str, Run] = {}
        self.count = 0

    @rule(
        text=st.text("xy", min_size=1, max_size=6),
        answer=st.integers(0, 3),
        shard=st.sampled_from("ab"),
        use=st.booleans(),
    )
    def reserve(self, text: str, answer: int, shard: str, use: bool) -> None:
        names, runs = hashes_of(text), self.kv.find(hashes_of(text))
        shared = 0
        if use and runs:
            shard, shared = runs[0].shard, min(runs[0].pages, len(text) - 1)
        pages = len(text) - shared + answer
        held = (Span(0, shared),) if shared else ()
        idle = sum(name in self.kv.cache._idle[shard] for name in names[:shared])
        fits = self.kv.room().free[shard] >= pages + idle
        self.count += 1
        request = str(self.count)
        shares = {shard: names[:shared]} if shared else {}
        try:
            self.kv.reserve(request, 0, (place(shard, shared, pages, *held),), shares)
        except Refused:
            assert not fits
            return
        assert fits
        self.running[request] = Run(shard, text, shared, pages, shared, ())

    def deliver(self) -> None:
        for shard, names in self.outbox.items():
            self.named[shard] -= set(names)
            names.clear()

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99), answer=st.text("xy", max_size=3))
    def commit(self, which: int, answer: str) -> None:
        request, run = sorted(self.running.items())[which % len(self.running)]
        self.deliver()
        text = run.text + (answer if run.full > run.shared else "")
        text = text[: run.shared + run.pages]
        fresh = hashes_of(text)[run.full :]
        here = [name for name in fresh if name not in self.named[run.shard]]
        self.named[run.shard] |= set(here)
        kept = self.kv.commit(request, 0, {run.shard: fresh})[run.shard]
        assert set(kept) <= set(here)
        full = max(run.full, len(text))
        self.running[request] = run._replace(text=text, full=full, own=run.own + kept)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99))
    def release(self, which: int) -> None:
        request, _ = sorted(self.running.items())[which % len(self.running)]
        self.kv.release(request, 0)
        del self.running[request]

    @rule()
    def restart(self) -> None:
        self.deliver()
        self.kv = Directory()
        for shard, names in self.named.items():
            self.outbox[shard] = self.kv.announce(shard, f"{shard}/1", PAGES, 1, (), sorted(names))
        for request, run in self.running.items():
            held = (Span(0, run.shared),) if run.shared else ()
            shares = {run.shard: hashes_of(run.text)[: run.shared]}
            where = (place(run.shard, run.shared, run.pages, *held),)
            self.kv.reserve(request, 0, where, shares, True, {run.shard: run.own})
        self.deliver()

    @rule(shard=st.sampled_from("ab"))
    def lose(self, shard: str) -> None:
        self.kv.withdraw(shard, f"{shard}/1")
        for request in [key for key, run in self.running.items() if run.shard == shard]:
            self.kv.release(request, 0)
            del self.running[request]
        self.named[shard].clear()
        self.outbox[shard] = self.kv.announce(shard, f"{shard}/1", PAGES, 1, ())

    @invariant()
    def what_is_used_is_there(self) -> None:
        for run in self.running.values():
            used = {*hashes_of(run.text)[: run.shared], *run.own}
            assert self.kv.cache.on(run.shard, used)
            assert not used & set(self.outbox[run.shard])

    @invariant()
    def everything_fits_and_is_counted(self) -> None:
        free = self.kv.room().free
        for shard, names in self.named.items():
            runs = [run for run in self.running.values() if run.shard == shard]
            private = sum(run.pages - len(run.own) for run in runs)
            used = {n for run in runs for n in (*hashes_of(run.text)[: run.shared], *run.own)}
            assert free[shard] == PAGES - private - len(used) >= 0
            here = names - set(self.outbox[shard])
            assert here == {n for n, at in self.kv.cache._shard.items() if at == shard}
            assert private + len(here) <= PAGES

    def teardown(self) -> None:
        for request in self.running:
            self.kv.release(request, 0)
        assert self.kv.room().free == {"a": PAGES, "b": PAGES}


Cluster.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestCluster = Cluster.TestCase
