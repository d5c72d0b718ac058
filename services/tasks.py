"""Small pieces of structured concurrency that services share."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from sps2.common.errors import Cancelled, Internal, Invalid, PeerLost, Refused, ServiceError

Item = TypeVar("Item")

INSIST_S = 0.2
"""After this time a task that goes on is cancelled again."""

MOST = 1 << 14
"""Items that may wait for their reader: about half a minute's tokens of many choices."""

_WEIGHT: tuple[type[ServiceError], ...] = (Invalid, PeerLost, Refused, Internal, Cancelled)


async def forever() -> None:
    """Wait until cancelled."""
    await asyncio.Event().wait()


def root_cause(error: BaseException) -> BaseException:
    """The most useful error of a (nested) group; any other error is returned as it is."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [root_cause(inner) for inner in error.exceptions]
    for kind in _WEIGHT:
        for cause in causes:
            if isinstance(cause, kind):
                return cause
    return causes[0]


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it ends.

    Cancelling once may not be enough: a TaskGroup that is cancelled while one of its tasks fails
    raises only that failure, and code that handles it goes on.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=INSIST_S)


async def emitted_by(
    job: Callable[[Callable[[Item], None]], Coroutine[Any, Any, None]],
) -> AsyncIterator[Item]:
    """Yield what `job(emit)` emits while it runs; ending the iteration cancels and awaits it.

    Raises:
        Cancelled: `MOST` items wait, since the reader has stopped reading them.
    """
    items: asyncio.Queue[Item] = asyncio.Queue()

    def emit(item: Item) -> None:
        if items.qsize() >= MOST:
            raise Cancelled(f"{MOST} items wait for a client that does not read them")
        items.put_nowait(item)

    task = asyncio.create_task(job(emit))
    try:
        while not task.done() or not items.empty():
            getting = asyncio.ensure_future(items.get())
            try:
                await asyncio.wait({task, getting}, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    yield getting.result()
            finally:
                getting.cancel()
        task.result()
    finally:
        await end(task)
        if not task.cancelled():
            task.exception()


async def within(seconds: float, waiting: Awaitable[Any], late: ServiceError) -> None:
    """Await something; after so many seconds raise `late` instead."""
    try:
        async with asyncio.timeout(seconds):
            await waiting
    except TimeoutError:
        raise late from None


async def gather_all(*awaitables: Awaitable[Item]) -> list[Item]:
    """Like `asyncio.gather`, but the first failure cancels the rest and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_as_coroutine(each)) for each in awaitables]
    except BaseExceptionGroup as failures:
        raise root_cause(failures) from None
    return [task.result() for task in tasks]


async def _as_coroutine(awaitable: Awaitable[Item]) -> Item:
    return await awaitable
