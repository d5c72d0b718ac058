"""A data loop that stays awake for a moment where its next work is about to come."""

import asyncio
import os
import time

SPIN_S = 1e-3
"""Longer than an owner takes from one layer's question to that of the next."""
WANTED_S = 1e-4
"""A processor that comes back only after so long was wanted by somebody else."""
REST_S = 1.0


class HolderSpin:
    """Keeps its loop from sleeping until a moment after the last `more`.

    Waking a processor that sleeps takes longer than a small exchange itself; on virtual machines
    its sender waits for that too. Where others want the processor it is left to them, and the loop
    sleeps as any other for a second: who wakes up goes before those who run, who waits awake not.
    """

    def __init__(self) -> None:
        self._until = self._rested = 0.0
        self._awake = False

    def more(self) -> None:
        """More is about to come; to be called on the loop."""
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
