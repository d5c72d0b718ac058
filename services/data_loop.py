"""The loop of a shard process where model, attention and transfers run."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

from sps2.common.vital import end_process
from sps2.services.busy import ThreadClock
from sps2.services.gpu_faults import end_if_poisoned

Result = TypeVar("Result")

PULSE_S = 5.0
"""Time between two checks whether the loop still runs."""
STUCK_S = 60.0
"""A loop that has not run for this long is stuck. Long steps take a second, as does compiling a
kernel of a GPU."""


class DataLoop:
    """A thread with its own event loop, where model, attention and transfers run.

    So the control loop stays responsive whatever is computed.
    """

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="data", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def clock(self) -> ThreadClock:
        """The CPU clock of its thread."""

        async def made() -> ThreadClock:
            return ThreadClock()

        return await self.run(made())

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on this loop and await it; cancelling the call cancels the coroutine.

        One that has not begun by then never begins: what the caller posts next comes after it.
        """
        is_cancelled = False

        async def begun() -> Result:
            if is_cancelled:
                work.close()
                raise asyncio.CancelledError
            return await work

        there = asyncio.run_coroutine_threadsafe(begun(), self._loop)
        there.add_done_callback(_look_at)
        try:
            return await asyncio.wrap_future(there)
        except asyncio.CancelledError:
            is_cancelled = True
            raise

    def post(self, work: Callable[[], object]) -> None:
        """Call a function on this loop soon, without waiting."""
        self._loop.call_soon_threadsafe(work)

    async def watch(self) -> None:
        """End this process if the loop has not run for `STUCK_S`; its supervisor starts it again.

        Heartbeats come from the control loop: nobody else would notice.
        """
        while True:
            await asyncio.sleep(PULSE_S)
            try:
                async with asyncio.timeout(STUCK_S):
                    await self.run(_nothing())
            except TimeoutError as error:
                end_process(f"the data loop has not run for {STUCK_S:g} s", error)

    async def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()


async def _nothing() -> None:
    """Show that the loop runs."""


def _look_at(work: Future[Any]) -> None:
    if not work.cancelled() and (error := work.exception()) is not None:
        end_if_poisoned(error)
