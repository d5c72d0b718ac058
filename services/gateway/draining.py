"""Waits for the answers of a gateway that is to end."""

import asyncio
import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

POLL_S = 0.05
LAST_WORDS_S = 0.5
"""For the end of the last answers, which is on its way, to be read before connections close; and
for requests on their way, which are told to go elsewhere."""


async def drained(is_idle: Callable[[], bool], serves: Callable[[], bool], within_s: float) -> None:
    """Wait until the gateway is idle, at most `within_s`, and not where answers cannot go on.

    Args:
        serves: whether the cluster serves.
    """
    since_s = time.monotonic()
    while not is_idle():
        waited_s = time.monotonic() - since_s
        if waited_s > within_s or not serves():
            why = "the cluster does not serve" if waited_s <= within_s else f"after {within_s:g} s"
            log.warning("answers are ended that still run: %s", why)
            return
        await asyncio.sleep(POLL_S)
    await asyncio.sleep(LAST_WORDS_S)
