import asyncio
import gc
from collections.abc import Awaitable, Callable
from time import process_time

import pytest
import torch
from torch import Tensor

from sps2.common.errors import Invalid, PeerLost
from sps2.common.messages import Peer
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane

from ...waiting import until

MakePlanes = Callable[..., Awaitable[list[Plane]]]

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.uint8, torch.int32]


def kv(*tensors: Tensor, request: str = "r", epoch: int = 0, at: int = 0) -> Frame:
    return frame_for("kv", (request,), (epoch,), 0, at, tensors)


def noise(nbytes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("shape", [(), (0, 3), (5, 1, 7), (3, 20_000)])
async def test_all_dtypes_arrive_exactly(make_planes: MakePlanes, shape: tuple[int, ...]) -> None:
    a, b = await make_planes()
    tensors = tuple(torch.randint(0, 100, shape).to(dtype) for dtype in DTYPES)
    with b.open("r", 0) as inbox:
        await a.send(b.name, kv(*tensors), tensors)
        received = await inbox.recv("kv", 0, 0, a.name)
    for sent, got in zip(tensors, received, strict=True):
        assert got.dtype == sent.dtype
        assert torch.equal(got, sent)


@pytest.mark.parametrize("nbytes", [8191, 32_700, 32_768, 65_536, (2 << 20) + 1, 40 << 20])
async def test_sizes_around_every_limit(make_planes: MakePlanes, nbytes: int) -> None:
    a, b = await make_planes()
    tensors = (noise(nbytes), torch.ones(0), noise(nbytes // 3, 1))
    with b.open("r", 0) as inbox:
        await a.send(b.name, kv(*tensors), tensors)
        for sent, got in zip(tensors, await inbox.recv("kv", 0, 0, a.name), strict=True):
            assert torch.equal(got, sent)


async def test_memory_may_be_reused_after_send(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    tensor = torch.empty(3 << 20, dtype=torch.uint8)
    with b.open("r", 0) as inbox:
        for at in range(5):
            tensor.fill_(at)
            await a.send(b.name, kv(tensor, at=at), (tensor,))
        for at in range(5):
            (got,) = await inbox.recv("kv", 0, at, a.name)
            assert bool((got == at).all())


async def test_order_and_many_at_once_in_both_directions(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    order: list[tuple[str, int]] = []
    for plane in (a, b):
        plane.serve("q", lambda source, frame, tensors: order.append((source, frame.at)))
        plane.open("r", 0)

    async def send(source: Plane, target: Plane, at: int) -> None:
        tensors = (noise([10, 50_000, 3 << 20][at % 3], at),)
        await source.send(target.name, frame_for("q", ("r",), (0,), 0, at, tensors), tensors)

    async with asyncio.TaskGroup() as tasks:
        for at in range(60):
            tasks.create_task(send(a, b, at))
            tasks.create_task(send(b, a, at))
    while len(order) < 120:
        await asyncio.sleep(0.001)
    for plane in (a, b):
        assert [at for source, at in order if source == plane.name] == list(range(60))


async def test_frames_of_other_epochs_are_dropped(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    old, new = torch.zeros(100_000), torch.ones(100_000)
    with b.open("r", 1) as inbox, b.open("r", 2) as newer:
        await a.send(b.name, kv(old, epoch=0), (old,))
        await a.send(b.name, kv(old, request="other", epoch=1), (old,))
        await a.send(b.name, kv(new, epoch=1), (new,))
        await a.send(b.name, kv(old, epoch=2), (old,))
        assert torch.equal((await inbox.recv("kv", 0, 0, a.name))[0], new)
        assert torch.equal((await newer.recv("kv", 0, 0, a.name))[0], old)
        with pytest.raises(AssertionError, match="open already"):
            b.open("r", 1)
    assert b.counters["frames_dropped"] == 2
    await a.send(b.name, kv(new, epoch=1), (new,))
    while b.counters["frames_dropped"] < 3:
        await asyncio.sleep(0.001)
    b.open("r", 1).close()


async def test_handlers_take_what_they_want_and_may_fail(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    got: list[float] = []
    wanted: dict[tuple[str, int], bool] = {}
    tensor = torch.tensor([1.5])

    def fail(source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        raise ValueError("cannot take it")

    b.serve("probe", fail)
    b.serve("kv", lambda source, frame, tensors: got.append(float(tensors[0])), wanted)
    await a.send(b.name, frame_for("probe", ("r",), (0,), 0, 0, (tensor,)), (tensor,))
    with b.open("r", 0) as inbox:
        await a.send(b.name, kv(tensor), (tensor,))
        await until(lambda: b.counters["frames_dropped"])
        wanted["r", 1] = True
        await a.send(b.name, kv(2 * tensor, epoch=1), (2 * tensor,))
        await until(lambda: got)
        assert not inbox._queued
    assert got == [3.0]
    assert b.counters["handler_errors"] == b.counters["frames_dropped"] == 1


async def test_bytes_are_counted_by_purpose_and_peer(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    sizes = {"kv": 100_000, "q": 1000, "state": 7}
    b.open("r", 0)
    for purpose, nbytes in sizes.items():
        tensors = (noise(nbytes),)
        await a.send(b.name, frame_for(purpose, ("r",), (0,), 0, 0, tensors), tensors)
    while b.counters["state_received"] == 0:
        await asyncio.sleep(0.001)
    for purpose, nbytes in sizes.items():
        assert a.counters[f"{purpose}_sent"] == b.counters[f"{purpose}_received"]
        assert nbytes < a.counters[f"{purpose}_sent"] < nbytes + 100
    assert a.links[b.name]["frames_sent"] == b.links[a.name]["frames_received"] == 3
    assert a.links[b.name]["sent"] == b.links[a.name]["received"] > 101_007


async def test_wrong_tensors_are_refused(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    tensor = torch.zeros(4, 6)
    for frame, tensors in [
        (kv(tensor), ()),
        (kv(tensor), (tensor.half(),)),
        (kv(tensor), (tensor[:2],)),
    ]:
        with pytest.raises(Invalid):
            await a.send(b.name, frame, tensors)


async def test_any_layout_is_sent(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    tensor = torch.arange(24.0).view(4, 6).T
    with b.open("r", 0) as inbox:
        await a.send(b.name, kv(tensor), (tensor,))
        (came,) = await inbox.recv("kv", 0, 0, a.name)
    assert torch.equal(came, tensor)


async def test_a_cancelled_send_is_whole_or_absent(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    small = torch.ones(3)
    with b.open("r", 0) as inbox:
        await a.send(b.name, kv(small), (small,))
        big = torch.ones(40 << 20, dtype=torch.uint8)
        first = asyncio.create_task(a.send(b.name, kv(big, at=1), (big,)))
        queued = asyncio.create_task(a.send(b.name, kv(big, at=2), (big,)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        queued.cancel()
        await asyncio.gather(first, queued, return_exceptions=True)
        big.zero_()
        await a.send(b.name, kv(small, at=3), (small,))
        assert torch.equal((await inbox.recv("kv", 0, 3, a.name))[0], small)
        for at in (1, 2):
            receiving = asyncio.create_task(inbox.recv("kv", 0, at, a.name))
            await asyncio.sleep(0)
            if receiving.done():
                assert bool((receiving.result()[0] == 1).all())
            receiving.cancel()
    if a.backend != "inproc":
        assert b.counters["frames_dropped"] == 1


async def test_closing_an_inbox_midway_keeps_the_link(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    big, small = noise(24 << 20), torch.ones(3)
    inbox = b.open("r", 0)
    await a.send(b.name, kv(small), (small,))
    sending = asyncio.create_task(a.send(b.name, kv(big, at=1), (big,)))
    receiving = asyncio.create_task(inbox.recv("kv", 0, 1, a.name))
    for _ in range(3):
        await asyncio.sleep(0)
    receiving.cancel()
    inbox.close()
    await sending
    with b.open("s", 0) as other:
        await a.send(b.name, kv(big, request="s"), (big,))
        assert torch.equal((await other.recv("kv", 0, 0, a.name))[0], big)


async def test_concurrent_first_sends_share_one_link(make_planes: MakePlanes) -> None:
    a, b, c = await make_planes(3)
    with b.open("r", 0) as inbox:
        async with asyncio.TaskGroup() as tasks:
            for at in range(20):
                tensor = torch.tensor([at])
                tasks.create_task(a.send(b.name, kv(tensor, at=at), (tensor,)))
                tasks.create_task(c.send(b.name, kv(tensor, at=at), (tensor,)))
        for at in range(20):
            for source in (a, c):
                assert int((await inbox.recv("kv", 0, at, source.name))[0]) == at


async def test_a_peer_that_is_not_there(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    tensor = torch.ones(1)
    with pytest.raises(PeerLost, match="not known"):
        await a.send("nobody/1", kv(tensor), (tensor,))
    a.introduce(Peer("shard-9/1", b.address, b.token))
    with pytest.raises(PeerLost, match="shard-9/1"):
        await a.send("shard-9/1", kv(tensor), (tensor,))
    await b.close()
    with pytest.raises(PeerLost):
        await a.send(b.name, kv(tensor), (tensor,))


async def test_the_failure_of_a_dial_that_nobody_awaits_any_more(
    make_planes: MakePlanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no error of the process, whose log would have a traceback for each."""
    a, b = await make_planes()
    unheard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    dialled, fail = asyncio.Event(), asyncio.Event()

    async def dial(*_: object) -> None:
        dialled.set()
        await fail.wait()
        raise PeerLost(b.name, "it does not answer")

    monkeypatch.setattr(a._backend, "dial", dial)
    tensor = torch.ones(1)
    sending = asyncio.create_task(a.send(b.name, kv(tensor), (tensor,)))
    await dialled.wait()
    sending.cancel()
    await asyncio.wait({sending})
    del sending  # its traceback has the dial
    fail.set()
    await until(lambda: all(each.get_name() != f"dial {b.name}" for each in asyncio.all_tasks()))
    gc.collect()
    assert not unheard


async def test_waiting_uses_no_processor(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    tensor = torch.ones(1)
    with b.open("r", 0) as inbox, a.open("r", 0) as other:
        await a.send(b.name, kv(tensor, at=1), (tensor,))
        await b.send(a.name, kv(tensor, at=1), (tensor,))
        waiting = [
            asyncio.create_task(inbox.recv("kv", 0, 0, a.name)),
            asyncio.create_task(other.recv("kv", 0, 0, b.name)),
        ]
        await asyncio.sleep(0.1)
        used = process_time()
        await asyncio.sleep(1)
        used = process_time() - used
        await a.send(b.name, kv(tensor), (tensor,))
        await b.send(a.name, kv(tensor), (tensor,))
        await asyncio.gather(*waiting)
    assert used < 0.2
