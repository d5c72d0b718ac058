"""Pages are shared by name, outlive their request, and are free after their last user."""

import asyncio

import pytest
import torch
from msgspec.structs import replace

from sps2.common.errors import Cancelled, Internal, Invalid, PeerLost, Refused
from sps2.common.messages import Evicted, Hold
from sps2.common.model.pages import PagePool
from sps2.common.spans import Span
from sps2.common.transport.frame import frame_for
from sps2.common.transport.plane import Plane
from sps2.kernels.lossless import encode
from sps2.services.decode.kv import holding
from sps2.services.decode.kv.holding import Holdings

from ...world import PAGE_TOKENS, tiny_config

NAMES = tuple(bytes([number]) for number in range(8))


@pytest.fixture
def pool() -> PagePool:
    return PagePool(tiny_config(), 10, PAGE_TOKENS, torch.float32)


@pytest.fixture
def holdings(pool: PagePool) -> Holdings:
    config = tiny_config()
    return Holdings(pool, Plane("here", "inproc"), config, Span(0, config.kv_heads), torch.float32)


def hold(request: str, start: int, stop: int, *shared: Span, growth: int = 0) -> Hold:
    return Hold(request, 0, Span(start, stop), stop - start + growth, NAMES, shared)


async def test_named_pages_stay_and_are_shared(holdings: Holdings, pool: PagePool) -> None:
    first = await holdings.hold(hold("first", 0, 14, growth=4))
    assert (len(first.own), pool.free_pages) == (5, 5)
    holdings.cache(("first", 0), NAMES[:3])
    assert [held.pages for held in holdings.inventory()] == [2]
    holdings.release(("first", 0))
    assert (pool.free_pages, holdings.inventory()) == (7, ())
    assert holdings.cached.news() == NAMES[:3]

    second = await holdings.hold(hold("second", 20, 23, Span(0, 4), Span(8, 12)))
    assert second.pages.slot(1) == first.pages.slot(1)
    assert [run.start for run in second.pages.runs(23)] == [0, 8, 20]
    holdings.evict(Evicted(NAMES[:3]))
    assert pool.free_pages == 7, "of three evicted pages two are in use"
    holdings.release(("second", 0))
    assert (pool.free_pages, holdings.cached.hashes(), holdings.cached.news()) == (10, (), ())


async def test_what_is_not_cached_is_refused_and_takes_nothing(
    holdings: Holdings, pool: PagePool
) -> None:
    with pytest.raises(Refused, match="not cached"):
        await holdings.hold(hold("r", 4, 6, Span(0, 4)))
    assert pool.free_pages == 10
    assert holdings.cached.missing() == NAMES[:1]
    holdings.cached.reported(NAMES)
    assert holdings.cached.missing() == ()


async def test_a_second_page_of_a_name_stays_its_requests(
    holdings: Holdings, pool: PagePool
) -> None:
    for request in ("a", "b"):
        await holdings.hold(hold(request, 0, 8))
        holdings.cache((request, 0), NAMES[:2])
    assert [held.pages for held in holdings.inventory()] == [0, 2]
    for request in ("b", "a"):
        holdings.release((request, 0))
    assert pool.free_pages == 8


async def test_eviction_makes_room_for_who_waits(
    holdings: Holdings, pool: PagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "WAIT_FOR_PAGES_S", 0.05)
    await holdings.hold(hold("a", 0, 40))
    holdings.cache(("a", 0), NAMES)
    holdings.release(("a", 0))
    with pytest.raises(Refused, match="2 pages are free"):
        await holdings.hold(hold("b", 0, 12))
    holdings.evict(Evicted(NAMES[-1:]))
    assert len((await holdings.hold(hold("b", 0, 12))).own) == 3


async def test_the_loss_of_a_source_ends_the_waiting(pool: PagePool) -> None:
    """What it sent last may not have arrived, and nothing else would tell."""
    config = tiny_config()
    here, there = Plane("here/1", "inproc"), Plane("there/1", "inproc")
    await here.start()
    await there.start()
    holdings = Holdings(pool, here, config, Span(0, config.kv_heads), torch.float32)
    request = hold("r", 0, 4)
    request = replace(request, sources=(there.peer,))
    await holdings.hold(request)
    here.introduce(request.sources[0])
    await here.send(there.name, frame_for("kv", ("x",), (0,), 0, 0, ()), ())  # they are linked
    waiting = asyncio.create_task(holdings.complete((request.request, request.epoch)))
    await asyncio.sleep(0)
    here.forget(there.name)
    with pytest.raises(PeerLost, match="there/1"):
        await waiting
    await holdings.hold(replace(request, request="s"))  # it is reached again
    waiting = asyncio.create_task(holdings.complete(("s", request.epoch)))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    for key in (("r", 0), ("s", 0)):
        holdings.release(key)
    waiting.cancel()
    await here.close()
    await there.close()


async def test_kv_that_comes_twice_is_an_error(pool: PagePool) -> None:
    """It would count for a part that never came."""
    config = tiny_config()
    here = Plane("here/1", "inproc")
    holdings = Holdings(pool, here, config, Span(0, config.kv_heads), torch.float32)
    held = await holdings.hold(hold("r", 0, 4))
    k, v = (torch.ones(4, config.kv_heads, config.head_dim),) * 2
    frame = frame_for("deposit", ("r",), (0,), 0, 0, (k, v))
    held.deposit("there/1", frame, k, v)
    with pytest.raises(Invalid, match="do not belong here"):
        held.deposit("there/1", frame, k, v)
    assert not held.filled.is_set()


async def test_frames_of_what_is_not_held_are_dropped(pool: PagePool) -> None:
    config = tiny_config()
    here, there = Plane("here/1", "inproc"), Plane("there/1", "inproc")
    await here.start()
    await there.start()
    there.introduce(here.peer)
    holdings = Holdings(pool, here, config, Span(0, config.kv_heads), torch.float32)
    tensors = (torch.ones(4, config.kv_heads, config.head_dim),) * 2

    async def deposit(request: str, epoch: int) -> None:
        frame = frame_for("deposit", (request,), (epoch,), 0, 0, tensors)
        await there.send(here.name, frame, tensors)

    held = await holdings.hold(hold("r", 0, 4))
    prefilling = here.open("r", 0)  # as where one process does both
    for request, epoch in (("r", 1), ("s", 0)):
        await deposit(request, epoch)
    assert (held.kv_bytes, here.counters["frames_dropped"]) == (0, 2)
    await deposit("r", 0)
    assert held.kv_bytes == sum(tensor.nbytes for tensor in tensors)
    assert bool((pool.layer(0)[0][held.pages.slot(0)] == 1).all())
    holdings.release(("r", 0))
    await deposit("r", 0)
    assert here.counters["frames_dropped"] == 3
    prefilling.close()
    await here.close()
    await there.close()


@pytest.mark.parametrize(
    "wrong",
    {
        "head_dim": (torch.ones(4, 2, 32),) * 2,
        "dtype": (torch.ones(4, 2, 16, dtype=torch.int32),) * 2,
        "heads of v": (torch.ones(4, 2, 16), torch.ones(4, 1, 16)),
        "tokens": (torch.ones(5, 2, 16),) * 2,
        "dimensions": (torch.ones(4, 32),) * 2,
        "count": (torch.ones(4, 2, 16),) * 3,
        "nothing": (),
    }.items(),
    ids=lambda each: each[0],
)
async def test_kv_that_does_not_fit_ends_the_waiting(
    pool: PagePool, wrong: tuple[str, tuple[torch.Tensor, ...]]
) -> None:
    """Without it the holding never fills; from somebody else, it changes nothing."""
    config, (_, tensors) = tiny_config(), wrong
    here, there, else_ = (Plane(f"{name}/1", "inproc") for name in ("here", "there", "else"))
    for plane in (here, there, else_):
        await plane.start()
        plane.introduce(here.peer)
    holdings = Holdings(pool, here, config, Span(0, config.kv_heads), torch.float32)
    request = replace(hold("r", 0, 4), sources=(there.peer,))
    held = await holdings.hold(request)
    waiting = asyncio.create_task(holdings.complete((request.request, request.epoch)))
    for sender in (else_, there):
        assert not held.filled.is_set()
        await sender.send(here.name, frame_for("deposit", ("r",), (0,), 0, 0, tensors), tensors)
    with pytest.raises(Internal, match="KV of request r from there/1 could not be kept: "):
        async with asyncio.timeout(60):
            await waiting
    for plane in (here, there, else_):
        await plane.close()


async def test_a_holding_grows_behind_its_last_page(holdings: Holdings, pool: PagePool) -> None:
    """PAGE_TOKENS is 4."""
    held = await holdings.hold(hold("r", 8, 18))
    await holdings.hold(hold("other", 0, 4))
    assert sorted(held.own) == [2, 3, 4]
    assert not held.pages.has(20)
    await holdings.grow(("r", 0), 15)
    assert sorted(held.own) == [2, 3, 4, 5]
    assert held.pages.has(23)
    assert not held.pages.has(24)
    await holdings.grow(("r", 0), 15)
    assert pool.free_pages == 5, "it has that much already"
    k = torch.randn(6, 2, 16)
    held.pages.write(0, 17, k, k)
    first, *_ = held.pages.runs(23, 17)
    assert first.start == 17
    assert sum(run.tokens for run in held.pages.runs(23, 17)) == 6
    holdings.release(("r", 0))
    holdings.release(("other", 0))
    assert pool.free_pages == 10


async def test_growth_without_room_is_refused_and_takes_nothing(
    holdings: Holdings, pool: PagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "WAIT_FOR_PAGES_S", 0.01)
    await holdings.hold(hold("r", 0, 16))
    with pytest.raises(Refused, match="6 pages are free, 7 are needed"):
        await holdings.grow(("r", 0), 44)
    assert pool.free_pages == 6
    await holdings.grow(("r", 0), 40)
    assert pool.free_pages == 0
    holdings.release(("r", 0))
    with pytest.raises(Cancelled, match="not held"):
        await holdings.grow(("r", 0), 44)
    assert pool.free_pages == 10


async def test_packed_kv_is_unpacked_and_damage_fails_who_waits() -> None:
    config = tiny_config()
    pool = PagePool(config, 10, PAGE_TOKENS, torch.bfloat16)
    here, there = Plane("here/1", "inproc"), Plane("there/1", "inproc")
    await here.start()
    await there.start()
    there.introduce(here.peer)
    holdings = Holdings(pool, here, config, Span(0, config.kv_heads), torch.bfloat16)
    kv = torch.randn(2, 4, config.kv_heads, config.head_dim).bfloat16()
    packed = tuple(map(encode, kv))
    for request, carried in (("r", packed), ("s", (packed[0], packed[1][:-1]))):
        asked = replace(hold(request, 0, 4), sources=(there.peer,))
        held = await holdings.hold(asked)
        for layer in range(config.layers):
            frame = frame_for("deposit", (request,), (0,), layer, 0, carried)
            await there.send(here.name, frame, carried)
        await held.filled.wait()
        if request == "r":
            assert held.failed is None
            assert held.kv_bytes == config.layers * sum(x.nbytes for x in packed)
            first = held.pages.slot(0)
            assert torch.equal(pool.layer(0)[0][first : first + 4], kv[0])
        else:
            assert isinstance(held.failed, Internal)
            assert "could not be kept" in str(held.failed)
    holdings.release(("r", 0))
    holdings.release(("s", 0))
    await here.close()
    await there.close()


async def test_a_request_may_end_while_its_kv_is_unpacked() -> None:
    config = tiny_config()
    pool = PagePool(config, 10, PAGE_TOKENS, torch.bfloat16)
    here = Plane("here/1", "inproc")
    holdings = Holdings(pool, here, config, Span(0, config.kv_heads), torch.bfloat16)
    kv = torch.randn(2, 4, config.kv_heads, config.head_dim).bfloat16()
    packed = tuple(map(encode, kv))
    await holdings.hold(hold("r", 0, 4))
    frame = frame_for("deposit", ("r",), (0,), 0, 0, packed)
    taking = asyncio.create_task(holdings._unpack("there/1", frame, packed))
    await asyncio.sleep(0)
    holdings.release(("r", 0))
    await taking
    assert pool.free_pages == 10
