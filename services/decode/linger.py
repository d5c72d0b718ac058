"""A data loop that stays awake for a moment where its next work is about to come."""

import asyncio
import os
import time

LINGER_S = 1e-3
"""Longer than an owner takes from one layer's question to that of the next."""


class Linger:
    """Keeps its loop from sleeping until a moment after the last `more`.

    Waking a processor that sleeps takes longer than a small exchange itself; on virtual machines
    its sender waits for that too. A processor that others want is left to them at every turn.
    """

    def __init__(self) -> None:
        self._until = 0.0
        self._awake = False

    def more(self) -> None:
        """More is about to come; to be called on the loop."""
        self._until = time.monotonic() + LINGER_S
        if not self._awake:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._awake = time.monotonic() < self._until
        if self._awake:
            os.sched_yield()
            asyncio.get_running_loop().call_soon(self._turn)
