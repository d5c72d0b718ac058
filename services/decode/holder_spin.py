"""Keeps a data loop awake for a moment when its next work is about to arrive."""

import asyncio
import os
import time

SPIN_S = 1e-3
"""Longer than an owner needs between the questions of two consecutive layers."""
WANTED_S = 1e-4
"""If yielding the processor takes longer than this, another thread wanted it."""
REST_S = 1.0
"""How long the loop then sleeps as usual."""


class HolderSpin:
    """Keeps its loop from sleeping until a moment after the last `more`.

    Waking a sleeping processor takes longer than a small exchange itself; on virtual machines the
    sender waits for that too. Where others want the processor, the loop leaves it to them and
    sleeps as usual for a second: the system prefers a thread that wakes up to those that run, but
    not one that spins.
    """

    def __init__(self) -> None:
        self._until = self._rested = 0.0
        self._awake = False

    def more(self) -> None:
        """More work is about to arrive; call this on the loop."""
        now = time.monotonic()
        self._until = now + SPIN_S
        if not self._awake and now >= self._rested:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        before = time.monotonic()
        os.sched_yield()
        after = time.monotonic()
        if after - before > WANTED_S:
            self._rested = after + REST_S
        self._awake = after < self._until and after >= self._rested
        if self._awake:
            asyncio.get_running_loop().call_soon(self._turn)
