"""Work whose result several need, done once when the first requests it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Once(Generic[Result]):
    """Runs `work` once; all callers of `get` share its result, even if the first is cancelled."""

    def __init__(self, work: Callable[[], Awaitable[Result]]) -> None:
        self._work = work
        self._doing: asyncio.Future[Result] | None = None

    async def get(self) -> Result:
        """The result of the work, which the first call starts."""
        if self._doing is None:
            self._doing = asyncio.ensure_future(self._do())
            self._doing.add_done_callback(retrieve)
        return await asyncio.shield(self._doing)

    async def _do(self) -> Result:
        return await self._work()


def retrieve(work: asyncio.Future[Any]) -> None:
    """Keep the loop from logging the error of `work`, which nobody may await any more.

    A done callback: the error still reaches everyone who does await.
    """
    if not work.cancelled():
        work.exception()
