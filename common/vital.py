"""Vital tasks: if one ends by a fault, the process logs that and ends too.

Its supervisor starts it again. A process that went on would seem healthy, but answer nobody.
"""

import asyncio
import logging
import os
from typing import Any

log = logging.getLogger(__name__)


def vital(task: asyncio.Task[Any]) -> asyncio.Task[Any]:
    """End this process if `task` fails; it may return, or be cancelled."""
    task.add_done_callback(_ended)
    return task


def end_process(why: str, error: BaseException) -> None:
    """End this process at once, with status 1; nothing is cleaned up."""
    log.critical("%s; this process ends", why, exc_info=error)
    logging.shutdown()
    os._exit(1)


def _ended(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        end_process(f"{task.get_name()} failed", error)
