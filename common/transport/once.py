"""Work whose result several need, done once when the first requests it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

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
        return await asyncio.shield(self._doing)

    async def _do(self) -> Result:
        return await self._work()
