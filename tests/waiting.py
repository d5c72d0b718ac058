"""Waiting for a condition, never for a time."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that has no event; what never comes ends with the test's time-out."""
    while not condition():
        await asyncio.sleep(0.002)
