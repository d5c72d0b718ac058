"""Senders are held back by who does not read, and by nobody else."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
import torch
from torch import Tensor

from sps2.common.device import Host
from sps2.common.errors import PeerLost
from sps2.common.transport import credit
from sps2.common.transport.frame import frame_for
from sps2.common.transport.inbox import Inbox
from sps2.common.transport.plane import Plane
from sps2.common.transport.receipts import KEPT_BACK

MakePlanes = Callable[..., Awaitable[list[Plane]]]

CREDIT = 1 << 20
FRAME = 200_000
FIT = CREDIT // FRAME


@pytest.fixture(autouse=True)
def little_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credit, "CREDIT_BYTES", CREDIT)


def send(
    a: Plane, b: Plane, layer: int, request: str = "r", nbytes: int = FRAME
) -> asyncio.Task[None]:
    tensors = (torch.full((nbytes,), layer, dtype=torch.uint8),)
    frame = frame_for("kv", (request,), (0,), layer, 0, tensors)
    return asyncio.create_task(a.send(b.name, frame, tensors))


async def read(inbox: Inbox, source: Plane, layer: int) -> None:
    (came,) = await inbox.recv("kv", layer, 0, source.name)
    assert bool((came == layer).all())


async def settled(a: Plane, b: Plane) -> None:
    """What was sent has come, and its receipts: a frame of another purpose and one back have."""
    tensors = (torch.ones(1),)
    for plane in (a, b):
        plane.serve("state", lambda source, frame, tensors: None)
    for _ in range(3):
        for here, there in ((a, b), (b, a)):
            seen = there.counters["state_received"]
            await here.send(there.name, frame_for("state", (), (), 0, 0, tensors), tensors)
            while there.counters["state_received"] == seen:
                await asyncio.sleep(0.001)


async def all_taken(a: Plane) -> None:
    """The sender knows that all was taken, but for receipts that are kept back."""
    while a.unread_bytes > credit.slack():
        await asyncio.sleep(0.001)


def done(sends: Sequence[asyncio.Task[None]]) -> int:
    return sum(task.done() for task in sends)


async def test_a_sender_waits_while_nobody_reads(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    with b.open("r", 0) as inbox:
        sends = [send(a, b, layer) for layer in range(20)]
        await settled(a, b)
        assert done(sends) == FIT
        assert FIT * FRAME <= a.unread_bytes <= CREDIT
        assert FIT * FRAME <= b.queued_bytes <= CREDIT
        for layer in range(20):
            await read(inbox, a, layer)
            assert a.unread_bytes <= CREDIT
            assert b.queued_bytes <= CREDIT
        await asyncio.gather(*sends)
    await all_taken(a)
    assert b.queued_bytes == 0


async def test_receipts_that_are_kept_back_hold_up_nobody(make_planes: MakePlanes) -> None:
    """Small frames get no receipt of their own: after them frames of any size still leave."""
    a, b = await make_planes()
    small = credit.slack() // 4
    with b.open("r", 0) as inbox:
        for layer in range(3):
            await send(a, b, layer, nbytes=small)
            await read(inbox, a, layer)
        await settled(a, b)
        if a.backend != "inproc":  # nothing has told the sender
            assert a.unread_bytes >= 3 * small
        await send(a, b, 3, nbytes=3 * CREDIT)
        await read(inbox, a, 3)
    await all_taken(a)


async def test_the_sender_remembers_few_small_frames(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    got: list[int] = []
    b.serve("kv", lambda source, frame, tensors: got.append(frame.at))
    tensors = (torch.ones(1),)
    frame = frame_for("kv", ("r",), (0,), 0, 0, tensors)
    for _ in range(2 * KEPT_BACK):
        await a.send(b.name, frame, tensors)
    while len(got) < 2 * KEPT_BACK or a.unread_bytes:
        await asyncio.sleep(0.001)


async def test_a_frame_over_the_credit_goes_alone(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    with b.open("r", 0) as inbox:
        sends = [send(a, b, layer, nbytes=3 * CREDIT) for layer in range(4)]
        await settled(a, b)
        assert done(sends) == 1
        for layer in range(4):
            await read(inbox, a, layer)
        await asyncio.gather(*sends)


async def test_any_order_of_reading_gets_everything(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    with b.open("r", 0) as inbox:
        sends = [send(a, b, layer) for layer in range(20)]
        for layer in reversed(range(20)):
            await read(inbox, a, layer)
        await asyncio.gather(*sends)


async def test_requests_do_not_hold_up_each_other(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    inbox = b.open("r", 0)
    with b.open("s", 0) as other:
        slow = [send(a, b, layer) for layer in range(20)]
        await settled(a, b)
        for layer in range(20):
            unheard = send(a, b, layer, "nobody's")
            quick = send(a, b, layer, "s")
            await read(other, a, layer)
            await asyncio.gather(unheard, quick)
    assert done(slow) == FIT
    inbox.close()  # the request ends: what it did not read comes to nothing
    await asyncio.gather(*slow)
    await all_taken(a)
    assert b.queued_bytes == 0


async def test_a_cancelled_wait_holds_up_nobody(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    with b.open("r", 0) as inbox:
        sends = [send(a, b, layer) for layer in range(FIT + 4)]
        await settled(a, b)
        for task in sends[FIT : FIT + 3]:
            task.cancel()
        for layer in [*range(FIT), FIT + 3]:
            await read(inbox, a, layer)
        await sends[-1]
    await all_taken(a)


async def test_a_loss_ends_the_wait_and_a_new_link_has_full_credit(
    make_planes: MakePlanes,
) -> None:
    a, b = await make_planes()
    with b.open("r", 0):
        sends = [send(a, b, layer) for layer in range(20)]
        await settled(a, b)
        b.forget(a.name)
        for task in sends[FIT:]:
            with pytest.raises(PeerLost):
                await task
    assert a.unread_bytes == 0
    await b.reach([a.peer])
    a.introduce(b.peer)
    with b.open("s", 0) as inbox:
        again = [send(a, b, layer, "s") for layer in range(20)]
        await settled(a, b)
        assert done(again) == FIT
        for layer in range(20):
            await read(inbox, a, layer)
        await asyncio.gather(*again)


class Slow(Host):
    """Brings the first tensors down later than those that follow."""

    def __init__(self) -> None:
        self.brought = 0

    async def down(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        self.brought += 1
        for _ in range(20 if self.brought == 1 else 0):
            await asyncio.sleep(0)
        return await super().down(tensors)


@pytest.mark.parametrize("device", [Host(), Slow()], ids=["host", "slow"])
async def test_frames_of_a_lane_arrive_in_the_order_of_the_calls(
    make_planes: MakePlanes, device: Host
) -> None:
    """Also of those that come while the first dials, and while it waits for its device."""
    a, b = await make_planes(device=device)
    order: list[int] = []
    b.serve("kv", lambda source, frame, tensors: order.append(frame.layer))
    sends = [send(a, b, 0, nbytes=10)]
    while not sends[0].done():
        sends.append(send(a, b, len(sends), nbytes=10))
        await asyncio.sleep(0)
    await asyncio.gather(*sends)
    while len(order) < len(sends):
        await asyncio.sleep(0.001)
    assert order == sorted(order)


async def test_tensors_for_several_peers_are_brought_down_once(make_planes: MakePlanes) -> None:
    device = Slow()
    a, *others = await make_planes(4, device=device)
    tensors = (torch.arange(10.0),)
    inboxes = [other.open("r", 0) for other in others]
    frame = frame_for("kv", ("r",), (0,), 0, 0, tensors)
    await a.send_all([other.name for other in others], frame, tensors)
    for inbox in inboxes:
        (came,) = await inbox.recv("kv", 0, 0, a.name)
        assert torch.equal(came, tensors[0])
    assert device.brought == 1


async def test_one_lost_of_several_is_a_loss(make_planes: MakePlanes) -> None:
    a, b, c = await make_planes(3)
    tensors = (torch.arange(10.0),)
    frame = frame_for("kv", ("r",), (0,), 0, 0, tensors)
    await c.close()
    with pytest.raises(PeerLost, match=c.name):
        await a.send_all([b.name, c.name], frame, tensors)
