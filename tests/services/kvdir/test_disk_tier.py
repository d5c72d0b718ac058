"""Pages on the disks of shards: found behind those in memory, leased as new ones, cached then."""

import pytest

from sps2.common.errors import Invalid, Refused
from sps2.common.messages import (
    Announce,
    CachedRun,
    DropCache,
    Evicted,
    OnDisk,
    Pinned,
    PinPages,
    Placement,
    UnpinAll,
)
from sps2.common.spans import Span
from sps2.services.kvdir.directory import Directory
from sps2.services.kvdir.service import DirectoryService

from .test_page_cache import cached, directory, hashes_of, place

READ_S = 0.25


def on_disk(kv: Directory, shard: str, text: str, erased: str = "", first: int = 0) -> None:
    names = hashes_of(text)[first:]
    gone = hashes_of(erased)[-1:] if erased else ()
    kv.report(shard, f"{shard}/1", (), (), (), OnDisk(names, gone, READ_S))


def restoring(shard: str, start: int, pages: int, shared: int, first: int = 0) -> Placement:
    """New pages behind `shared` cached ones, those from `first` on from disk."""
    span = Span(start, start + pages)
    return Placement(shard, span, pages, (Span(0, shared),), (Span(first, shared),))


def test_memory_comes_before_disk_and_one_shard_after_the_other() -> None:
    kv, _ = directory(a=8, b=8)
    cached(kv, "a", "ab")
    on_disk(kv, "b", "abcdef", first=1)
    on_disk(kv, "a", "abcd", first=2)
    assert kv.find(hashes_of("abcdefg")) == (
        CachedRun("a", 2, 2),
        CachedRun("a", 2, 0, READ_S),
        CachedRun("b", 2, 0, READ_S),
    )
    assert kv.leases().disk_pages == 7
    assert kv.room().free == {"a": 8, "b": 8}


def test_what_is_erased_or_lost_is_not_found() -> None:
    kv, _ = directory(a=8, b=8)
    on_disk(kv, "a", "abc")
    on_disk(kv, "b", "abc")
    on_disk(kv, "a", "", erased="ab")
    assert kv.find(hashes_of("abc")) == (CachedRun("a", 1, 0, READ_S), CachedRun("b", 2, 0, READ_S))
    kv.withdraw("b", "b/1")
    assert kv.find(hashes_of("abc")) == (CachedRun("a", 1, 0, READ_S),)
    kv.announce("b", "b/2", 8, 1, (), (), OnDisk(hashes_of("abc"), (), READ_S))
    assert sum(run.pages for run in kv.find(hashes_of("abc"))) == 3
    assert kv.leases().disk_pages == 5


def test_eviction_from_memory_leaves_the_page_on_disk() -> None:
    kv, evicted = directory(a=4)
    cached(kv, "a", "abc")
    on_disk(kv, "a", "abc")
    kv.reserve("s", 0, (place("a", 0, 3),))
    assert evicted["a"] == list(hashes_of("abc")[:0:-1])
    assert kv.find(hashes_of("abc")) == (CachedRun("a", 1, 1), CachedRun("a", 2, 0, READ_S))


def test_pages_from_disk_take_free_ones_and_are_cached_once_they_are_there() -> None:
    kv, _ = directory(a=8)
    cached(kv, "a", "a")
    on_disk(kv, "a", "abc")
    names = hashes_of("abc")
    kv.reserve("r", 0, (restoring("a", 3, 2, 3, 1),), {"a": names[:1]}, from_disk={"a": names[1:]})
    assert kv.room().free == {"a": 8 - 1 - 2 - 2}
    assert [run.on_disk for run in kv.find(names)] == [False, True], "not shared before they came"
    assert kv.commit("r", 0, {"a": names[1:]}) == {"a": names[1:]}
    assert kv.room().free == {"a": 3}
    assert kv.find(names) == (CachedRun("a", 3, 0),)
    kv.release("r", 0)
    assert kv.find(names) == (CachedRun("a", 3, 3),)
    assert kv.room().free == {"a": 8}


def test_a_second_reader_of_a_page_keeps_a_page_of_its_own() -> None:
    kv, _ = directory(a=8)
    on_disk(kv, "a", "ab")
    names = hashes_of("ab")
    for request in "rs":
        kv.reserve(request, 0, (restoring("a", 2, 1, 2),), from_disk={"a": names})
    assert kv.commit("r", 0, {"a": names}) == {"a": names}
    assert kv.commit("s", 0, {"a": names}) == {"a": ()}
    assert kv.room().free == {"a": 2}
    kv.release("r", 0)
    assert kv.room().free == {"a": 5}
    kv.release("s", 0)
    assert kv.room().free == {"a": 8}


def test_a_lease_on_pages_that_left_the_disk_is_refused_and_takes_nothing() -> None:
    kv, _ = directory(a=8)
    on_disk(kv, "a", "ab")
    on_disk(kv, "a", "", erased="ab")
    with pytest.raises(Refused, match="not where it was"):
        kv.reserve("r", 0, (restoring("a", 2, 1, 2),), from_disk={"a": hashes_of("ab")})
    on_disk(kv, "a", "abcdefg")
    with pytest.raises(Refused, match="no room"):
        kv.reserve("r", 0, (restoring("a", 7, 2, 7),), from_disk={"a": hashes_of("abcdefg")})
    assert kv.room().free == {"a": 8}


def test_a_restarted_directory_restores_such_a_lease() -> None:
    names = hashes_of("ab")
    for committed in (False, True):
        kv = Directory()
        here = names if committed else ()
        kv.announce("a", "a/1", 8, 1, (), here, OnDisk(names, (), READ_S))
        own = {"a": names} if committed else {}
        places = (restoring("a", 2, 1, 2),)
        kv.reserve("r", 0, places, {}, restore=True, own=own, from_disk={"a": names})
        assert kv.room().free == {"a": 5}
        kv.release("r", 0)
        assert kv.room().free == {"a": 8}


async def test_dropping_takes_idle_pages_and_those_on_disk() -> None:
    kv, evicted = directory(a=8, b=8)
    service = DirectoryService(kv)
    for shard in "ab":
        cached(kv, shard, f"{shard}bc")
        on_disk(kv, shard, f"{shard}bc")
    kv.reserve("use", 0, (place("a", 1, 1, Span(0, 1)),), {"a": hashes_of("abc")[:1]})
    with pytest.raises(Invalid, match="no shard 'c' keeps KV; these do: a, b"):
        await service.drop_cache(DropCache("c"))
    assert (await service.drop_cache(DropCache("b", 60))).pages == {"b": 0}
    assert kv.leases().disk_pages == 6
    assert (await service.drop_cache(DropCache())).pages == {"a": 2, "b": 3}
    assert [len(evicted[shard]) for shard in "ab"] == [2, 3]
    assert kv.find(hashes_of("abc")) == (CachedRun("a", 1, 0),)
    assert kv.find(hashes_of("bbc")) == ()


def keeping(kv: Directory, shard: str, text: str, most: int = 4, pinned: str = "") -> None:
    """A shard announces itself with pages on disk."""
    kept = OnDisk(hashes_of(text), (), READ_S, hashes_of(pinned), most)
    kv.announce(shard, f"{shard}/2", 8, 1, (), (), kept)


async def test_the_cached_pages_of_a_prompt_are_pinned() -> None:
    kv, _ = directory(a=8, b=8)
    service = DirectoryService(kv)
    keeping(kv, "a", "abc")
    keeping(kv, "b", "abcde", pinned="x")
    names = hashes_of("abcdef")
    assert await service.pin_pages(PinPages(names, True)) == Pinned({"a": 3, "b": 2}, 6)
    assert (await service.pin_pages(PinPages(names, True))).pages == {"a": 3, "b": 2}, "once more"
    kv.cache.disk.forget("a")
    assert kv.find(names[:3]) == (CachedRun("a", 3, 0, READ_S),), "dropping leaves them"
    assert await service.pin_pages(PinPages(names[:2], False)) == Pinned({"a": 2}, 2)
    assert await service.unpin_all(UnpinAll()) == Pinned({"a": 1, "b": 3})
    assert await service.unpin_all(UnpinAll()) == Pinned({})


def test_too_many_pins_are_refused_as_a_whole() -> None:
    kv, _ = directory(a=8, b=8)
    keeping(kv, "a", "a")
    keeping(kv, "b", "abcdefg", pinned="xy")
    with pytest.raises(Invalid, match=r"b would have 6 pinned pages; it may have 4, .* has 2:"):
        kv.cache.pin(hashes_of("abcde"))
    assert kv.cache.disk.unpin(hashes_of("abcde")) == {}
    assert kv.cache.pin(hashes_of("abc")) == {
        "a": [*hashes_of("abc")[:1]],
        "b": [*hashes_of("abc")[1:]],
    }


def test_what_is_not_cached_or_not_kept_cannot_be_pinned() -> None:
    kv, _ = directory(a=8, b=8)
    with pytest.raises(Invalid, match="none of the 2 full pages of this prompt is cached"):
        kv.cache.pin(hashes_of("ab"))
    cached(kv, "a", "ab")
    with pytest.raises(Invalid, match="a keeps no pages on disk"):
        kv.cache.pin(hashes_of("ab"))
    keeping(kv, "b", "")
    cached(kv, "b", "xy", "b/2")
    assert kv.cache.pin(hashes_of("xy")) == {"b": [*hashes_of("xy")]}, "it is being written"


async def test_shards_are_told_what_to_keep() -> None:
    service = DirectoryService(Directory())
    kept = OnDisk(hashes_of("abc"), (), READ_S, (), 4)
    told = []
    async for order in service.announce(Announce("a", "a/1", 8, 1, (), (), kept)):
        told.append(order)
        if len(told) == 2:
            break
        await service.pin_pages(PinPages(hashes_of("abc"), True))
        await service.pin_pages(PinPages(hashes_of("ab"), False))
    pins = dict.fromkeys(hashes_of("ab"), False) | {hashes_of("abc")[2]: True}
    assert told == [Evicted(()), Evicted((), None, pins)]
