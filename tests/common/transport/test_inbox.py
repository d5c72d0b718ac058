import asyncio
from collections.abc import Callable

import pytest
import torch

from sps2.common.errors import Cancelled, Internal, PeerLost
from sps2.common.transport import inbox as inboxes
from sps2.common.transport.frame import frame_for
from sps2.common.transport.inbox import Inbox


def open_inbox(why_gone: Callable[[str], str] = lambda source: "") -> Inbox:
    return Inbox(why_gone, lambda: None)


def put(inbox: Inbox, value: float, layer: int = 0) -> bool:
    tensors = (torch.tensor([float(value)]),)
    return inbox.put("a", frame_for("kv", ("r",), (0,), layer, 0, tensors), tensors)


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


async def test_too_much_unread_breaks_the_inbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inboxes, "MAX_QUEUED_BYTES", 8)
    inbox = open_inbox()
    assert [put(inbox, value) for value in range(3)] == [True, True, False]
    with pytest.raises(Internal, match="nobody reads"):
        await take(inbox)
    inbox.close()
