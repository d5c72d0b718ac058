"""Cached pages go to disk behind requests, and come back before those that begin alike."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sps2.common.errors import Refused
from sps2.common.messages import Evicted, Hold
from sps2.common.model.pages import PagePool
from sps2.common.spans import Span
from sps2.common.transport.plane import Plane
from sps2.services.decode.kv.disk import DiskPages
from sps2.services.decode.kv.holding import Holdings
from sps2.services.decode.kv.page_file import PageFormat
from sps2.services.decode.kv.page_store import PageStore

from ....waiting import until
from ...world import PAGE_TOKENS, tiny_config

CONFIG = tiny_config()
NAMES = tuple(bytes([number]) * 16 for number in range(8))
PAGES = 10


class Shard:
    """Pool, disk and holdings of one process."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.pool = PagePool(CONFIG, PAGES, PAGE_TOKENS, dtype)
        form = PageFormat(
            CONFIG.layers,
            CONFIG.kv_heads,
            PAGE_TOKENS,
            CONFIG.head_dim,
            str(dtype).removeprefix("torch."),
            bytes(16),
            self.pool.payload_bytes,
        )
        self.store = PageStore(folder, form, 1 << 30)
        self.disk = DiskPages(self.pool, self.store)
        heads = Span(0, CONFIG.kv_heads)
        plane = Plane("here", "inproc")
        self.holdings = Holdings(self.pool, plane, CONFIG, heads, torch.float32, self.disk)

    async def serve(self, request: str, pages: int) -> list[torch.Tensor]:
        """A request with a prompt of so many full pages; returns the payloads of its pages."""
        tokens = pages * PAGE_TOKENS
        holding = await self.holdings.hold(Hold(request, 0, Span(0, tokens), tokens, NAMES))
        for layer in range(CONFIG.layers):
            k, v = torch.randn(2, tokens, CONFIG.kv_heads, CONFIG.head_dim)
            holding.put(layer, 0, 0, k, v)
        self.holdings.cache((request, 0), NAMES[:pages])
        payloads = [self.pool.payload(page) for page in holding.pages.table.values()]
        self.holdings.release((request, 0))
        return payloads

    async def again(self, request: str, pages: int, first: int = 0) -> list[torch.Tensor]:
        """A request behind so many pages, those from `first` on from disk; their payloads."""
        holding = await self.holdings.hold(resumed(request, pages, first))
        return [self.pool.payload(holding.pages.table[number]) for number in range(pages)]


def resumed(request: str, pages: int, first: int = 0) -> Hold:
    prefix = pages * PAGE_TOKENS
    from_disk = (Span(first * PAGE_TOKENS, prefix),)
    span = Span(prefix, prefix + 3)
    return Hold(request, 0, span, 7, NAMES, (Span(0, prefix),), from_disk=from_disk)


def damage(folder: Path, page_hash: bytes) -> None:
    (place,) = folder.rglob(f"{page_hash.hex()}.kv")
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)


@asynccontextmanager
async def shard(folder: Path, dtype: torch.dtype = torch.float32) -> AsyncIterator[Shard]:
    made = Shard(folder, dtype)
    try:
        yield made
    finally:
        await made.disk.close()


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
async def test_pages_come_back_after_a_restart_as_they_were(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    async with shard(tmp_path, dtype) as before:
        payloads = await before.serve("first", 5)
    async with shard(tmp_path, dtype) as after:
        assert set(after.disk.all().hashes) == set(NAMES[:5])
        assert after.disk.all().read_page_s > 0
        assert same(await after.again("second", 4), payloads[:4])
        assert after.holdings.cached.hashes() == NAMES[:4]
        assert [held.pages for held in after.holdings.inventory()] == [2]
        assert after.pool.free_pages == PAGES - 6
        after.holdings.release(("second", 0))
        assert after.holdings.cached.news() == NAMES[:4]
        assert after.pool.free_pages == PAGES - 4
        assert after.disk.counters()["kv_disk_hits"] == 4
        assert after.disk.counters()["kv_disk_read_bytes"] == 4 * after.pool.payload_bytes
        assert after.disk.counters()["kv_disk_written_bytes"] == 0, "they are on disk already"


async def test_what_is_in_memory_is_not_read(tmp_path: Path) -> None:
    async with shard(tmp_path) as both:
        payloads = await both.serve("first", 3)
        assert same(await both.again("second", 3, first=1), payloads)
        assert (both.store.counters["hits"], both.pool.free_pages) == (0, PAGES - 3 - 2)


async def test_an_evicted_page_is_read_again_behind_pages_in_memory(tmp_path: Path) -> None:
    async with shard(tmp_path) as both:
        payloads = await both.serve("first", 3)
        await until(lambda: both.store.pages == 3)
        both.holdings.evict(Evicted(NAMES[2:3]))
        assert same(await both.again("second", 3, first=2), payloads)
        assert (both.store.counters["hits"], both.pool.free_pages) == (1, PAGES - 3 - 2)
        holding = both.holdings.get(("second", 0))
        assert holding is not None
        await both.holdings.grow(holding.key, 11)
        assert list(holding.pages.table) == [0, 1, 2, 3, 4, 5], "growth follows the span"


async def test_requests_that_come_together_read_each_page_once(tmp_path: Path) -> None:
    async with shard(tmp_path) as before:
        payloads = await before.serve("first", 4)
    async with shard(tmp_path) as after:
        both = await asyncio.gather(after.again("a", 3), after.again("b", 4))
        assert same(both[0], payloads[:3])
        assert same(both[1], payloads)
        assert after.store.counters["hits"] == 4
        assert after.pool.free_pages == PAGES - 4 - 2 * 2


async def test_a_damaged_page_refuses_the_hold_and_is_reported(tmp_path: Path) -> None:
    async with shard(tmp_path) as before:
        payloads = await before.serve("first", 4)
    damage(tmp_path, NAMES[2])
    async with shard(tmp_path) as after:
        with pytest.raises(Refused, match="not cached here"):
            await after.again("second", 4)
        assert (after.pool.free_pages, after.holdings.inventory()) == (PAGES, ())
        assert after.holdings.cached.hashes() == ()
        assert after.holdings.cached.missing() == NAMES[2:3]
        news = after.disk.news()
        assert (news.hashes, news.erased) == ((), NAMES[2:3])
        after.disk.reported(news)
        assert after.disk.news().erased == ()
        assert after.disk.counters()["kv_disk_damaged"] == 1
        assert same(await after.again("third", 2), payloads[:2])


async def test_without_a_disk_nothing_can_be_read() -> None:
    pool = PagePool(CONFIG, PAGES, PAGE_TOKENS, torch.float32)
    heads, plane = Span(0, CONFIG.kv_heads), Plane("here", "inproc")
    holdings = Holdings(pool, plane, CONFIG, heads, torch.float32)
    with pytest.raises(Refused, match="not cached here"):
        await holdings.hold(resumed("r", 2))
    assert (pool.free_pages, holdings.cached.missing()) == (PAGES, NAMES[:2])


async def test_a_hold_that_ends_while_it_reads_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shard(tmp_path) as before:
        await before.serve("first", 4)
    async with shard(tmp_path) as after:
        begun, go = asyncio.Event(), threading.Event()
        loop, read = asyncio.get_running_loop(), after.store.read

        def slow(page_hash: bytes) -> Any:
            loop.call_soon_threadsafe(begun.set)
            assert go.wait(60)
            return read(page_hash)

        monkeypatch.setattr(after.store, "read", slow)
        holding = asyncio.create_task(after.again("second", 4))
        await begun.wait()
        holding.cancel()
        await asyncio.sleep(0.05)
        assert after.pool.free_pages == PAGES - 4, "a thread may still write there"
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await holding
        assert (after.pool.free_pages, after.holdings.cached.hashes()) == (PAGES, ())
        monkeypatch.undo()
        await after.again("third", 4)


async def test_a_page_is_not_given_to_another_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shard(tmp_path) as one:
        begun, go = asyncio.Event(), threading.Event()
        loop, payload = asyncio.get_running_loop(), one.pool.payload

        def slow(page: int) -> torch.Tensor:
            loop.call_soon_threadsafe(begun.set)
            assert go.wait(60)
            return payload(page)

        payloads = await one.serve("first", 4)
        monkeypatch.setattr(one.pool, "payload", slow)
        await begun.wait()
        one.holdings.evict(Evicted(NAMES[:4]))
        assert one.pool.free_pages == PAGES - 4
        go.set()
        monkeypatch.undo()
        holding = await one.holdings.hold(Hold("whole", 0, Span(0, 40), 40, NAMES))
        assert len(holding.own) == PAGES, "it waited for the pages"
        one.holdings.release(("whole", 0))
        assert same(await one.again("second", 4), payloads)


async def test_of_a_prompt_the_last_page_goes_first_even_if_it_was_cached_later(
    tmp_path: Path,
) -> None:
    async with shard(tmp_path) as one:
        tokens = 4 * PAGE_TOKENS
        await one.holdings.hold(Hold("r", 0, Span(0, tokens), tokens, NAMES))
        one.holdings.cache(("r", 0), NAMES[:2])
        await until(lambda: one.store.pages == 2)
        one.holdings.cache(("r", 0), NAMES[2:4], 2)
    async with shard(tmp_path) as after:
        assert after.store.hashes() == NAMES[3::-1], "the least recently used is the first"
        after.holdings.release((await after.holdings.hold(resumed("s", 2))).key)
    async with shard(tmp_path) as later:
        assert later.store.hashes() == (*NAMES[3:1:-1], *NAMES[1::-1])
        await later.again("t", 4)
    async with shard(tmp_path) as last:
        assert last.store.hashes() == NAMES[3::-1]


async def test_a_page_that_was_evicted_before_its_turn_is_not_written(tmp_path: Path) -> None:
    async with shard(tmp_path) as one:
        await one.serve("first", 4)
        one.holdings.evict(Evicted(NAMES[1:4]))  # the writer has not run yet
    async with shard(tmp_path) as after:
        assert after.disk.all().hashes == NAMES[:1]
