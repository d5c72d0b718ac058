"""A loop stays awake after a question, and sleeps again soon after the last."""

import asyncio
import os

import pytest

from sps2.services.decode.linger import Linger


async def test_a_loop_lingers_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0

    def turned() -> None:
        nonlocal turns
        turns += 1

    monkeypatch.setattr(os, "sched_yield", turned)
    linger = Linger()
    linger.more()
    linger.more()
    for _ in range(3):
        await asyncio.sleep(0)
    assert 1 <= turns <= 3, "one turn of its own for each of the loop's"

    await asyncio.sleep(0.05)
    after = turns
    await asyncio.sleep(0.05)
    assert turns == after

    linger.more()
    await asyncio.sleep(0.05)
    assert turns > after
