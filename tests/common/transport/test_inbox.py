import asyncio
from collections.abc import Callable
from functools import partial

import pytest
import torch

from sps2.common.errors import Cancelled, PeerLost
from sps2.common.transport.frame import frame_for
from sps2.common.transport.inbox import Inbox


def open_inbox(why_gone: Callable[[str], str] = lambda source: "") -> Inbox:
    return Inbox(why_gone, lambda: None)


def put(
    inbox: Inbox, value: float, layer: int = 0, taken: Callable[[], None] = lambda: None
) -> bool:
    tensors = (torch.tensor([float(value)]),)
    return inbox.put("a", frame_for("kv", ("r",), (0,), layer, 0, tensors), tensors, taken)


async def take(inbox: Inbox, layer: int = 0) -> float:
    (tensor,) = await inbox.recv("kv", layer, 0, "a")
    return float(tensor)


async def test_frames_with_one_key_come_in_order_and_keys_are_apart() -> None:
    inbox = open_inbox()
    for value in (1, 2):
        put(inbox, value)
    put(inbox, 3, layer=1)
    assert [await take(inbox, 1), await take(inbox), await take(inbox)] == [3, 1, 2]


async def test_a_cancelled_receive_loses_nothing() -> None:
    inbox = open_inbox()
    first = asyncio.create_task(take(inbox))
    second = asyncio.create_task(take(inbox))
    await asyncio.sleep(0)
    put(inbox, 1)  # given to `first`, which has not run yet
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == 1
    third = asyncio.create_task(take(inbox))
    await asyncio.sleep(0)
    third.cancel()
    put(inbox, 2)
    with pytest.raises(asyncio.CancelledError):
        await third
    assert await take(inbox) == 2


async def test_what_came_before_a_loss_stays_readable() -> None:
    gone: dict[str, str] = {}
    inbox = open_inbox(lambda source: gone.get(source, ""))
    put(inbox, 1)
    waiting = asyncio.create_task(take(inbox, 1))
    await asyncio.sleep(0)
    gone["a"] = "it was killed"
    inbox.lose("a", gone["a"])
    with pytest.raises(PeerLost, match="killed"):
        await waiting
    assert await take(inbox) == 1
    with pytest.raises(PeerLost):
        await take(inbox)


async def test_closing_fails_who_waits() -> None:
    closed = []
    with Inbox(lambda source: "", lambda: closed.append(1)) as inbox:
        waiting = asyncio.create_task(take(inbox))
        await asyncio.sleep(0)
    inbox.close()
    with pytest.raises(Cancelled):
        await waiting
    with pytest.raises(Cancelled):
        await take(inbox)
    assert closed == [1]
    assert not put(inbox, 1)


async def test_a_frame_of_any_size_goes_to_who_waits() -> None:
    inbox = open_inbox()
    waiting = asyncio.create_task(inbox.recv("kv", 0, 0, "a"))
    await asyncio.sleep(0)
    huge = (torch.ones(1).expand(1 << 30),)  # 4 GiB by its shape, and no memory
    assert inbox.put("a", frame_for("kv", ("r",), (0,), 0, 0, huge), huge, lambda: None)
    assert (await waiting)[0].nbytes == 4 << 30


async def test_a_sender_is_told_when_its_frame_was_read() -> None:
    inbox = open_inbox()
    taken: list[int] = []
    for layer in range(4):
        put(inbox, layer, layer, partial(taken.append, layer))
    assert taken == []
    assert inbox.queued_bytes == 16
    await take(inbox, 1)
    assert taken == [1]
    assert inbox.queued_bytes == 12
    inbox.close()
    assert taken == [1, 0, 2, 3]
    assert not put(inbox, 9, 9, partial(taken.append, 9))
    assert taken == [1, 0, 2, 3, 9]


async def test_who_waits_opens_the_lane_and_no_other() -> None:
    inbox = open_inbox()
    taken: list[str] = []
    for source in ("a", "b"):
        frame = frame_for("kv", ("r",), (0,), 0, 0, (tensor := torch.ones(1),))
        inbox.put(source, frame, (tensor,), partial(taken.append, source))
    waiting = asyncio.create_task(take(inbox, 2))
    await asyncio.sleep(0)
    assert taken == ["a"]
    put(inbox, 1, 1, partial(taken.append, "next"))
    assert taken == ["a", "next"]
    put(inbox, 2, 2, partial(taken.append, "awaited"))
    put(inbox, 3, 3, partial(taken.append, "behind"))
    assert taken == ["a", "next", "awaited"]
    assert await waiting == 2
