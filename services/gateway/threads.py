"""Work on long texts runs in a thread, so that other requests go on."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sps2.services.memory import give_back

R = TypeVar("R")

LONG_TEXT = 4096
"""Characters from which on a text is tokenised in a thread."""
HUGE_TEXT = 64 << 10
"""Characters from which on the memory used for that is given back at once."""


async def threaded(size: int, work: Callable[[], R]) -> R:
    """Run `work`, in a thread if its text is long."""

    def frugally() -> R:
        try:
            return work()
        finally:
            if size >= HUGE_TEXT:
                give_back()

    return await asyncio.to_thread(frugally) if size >= LONG_TEXT else work()
