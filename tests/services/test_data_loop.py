"""A data loop that is stuck ends its process, since nobody else would notice."""

import asyncio
import threading

import pytest

from sps2.services import data_loop
from sps2.services.data_loop import DataLoop


class Ended(Exception):
    """In place of the end of the process."""


def end(why: str, error: BaseException) -> None:
    raise Ended(why) from error


async def test_a_stuck_loop_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_loop, "PULSE_S", 0.01)
    monkeypatch.setattr(data_loop, "end_process", end)
    loop, go_on = DataLoop(), threading.Event()
    loop.start()
    watching = asyncio.create_task(loop.watch())
    await asyncio.wait({watching}, timeout=0.5)
    assert not watching.done(), "it runs"
    monkeypatch.setattr(data_loop, "STUCK_S", 0.2)
    loop.post(go_on.wait)
    try:
        with pytest.raises(Ended, match=r"has not run for 0\.2 s"):
            await watching
    finally:
        go_on.set()
        await loop.close()


async def test_work_that_is_cancelled_before_it_begins_never_begins() -> None:
    """Else it would take something after its caller has given it back."""
    loop, go_on, taken = DataLoop(), threading.Event(), list[str]()
    loop.start()

    async def take() -> None:
        taken.append("here")

    async def taking() -> None:
        try:
            await loop.run(take())
        finally:
            loop.post(taken.clear)

    loop.post(go_on.wait)
    call = asyncio.create_task(taking())
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait({call})
    go_on.set()
    await loop.run(asyncio.sleep(0))
    assert taken == []
    await loop.close()
