"""Signals that end a program by way of its cleaning up."""

import asyncio
import signal


def cancel_on_signals() -> None:
    """Have signals cancel this task, once: what follows is the removal of what was made."""
    task = asyncio.current_task()
    assert task is not None

    def cancel() -> None:
        if not task.cancelling():
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, cancel)
