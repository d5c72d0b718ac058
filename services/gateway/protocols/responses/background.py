"""Responses that are made while no client waits for them."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Background:
    """The responses in work without a client, by id."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, response_id: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`, which handles its errors, until it ends or is cancelled."""
        task = asyncio.create_task(work)
        self._tasks[response_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(response_id, None))
        return task

    async def cancel(self, response_id: str) -> None:
        """Cancel a response, and wait until it has ended; one that is not in work is left alone."""
        task = self._tasks.get(response_id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
