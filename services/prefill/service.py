"""A prefill shard on the bus."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sps2.common.errors import Invalid
from sps2.common.messages import Deposited, Done, Join, Prefill, Prefilled
from sps2.common.model.llama import Llama
from sps2.common.transport.inbox import Inbox
from sps2.common.transport.plane import Plane
from sps2.services.prefill.prompt import run_prompt
from sps2.services.shard import DataLoop
from sps2.services.tasks import emitted_by, forever

Result = TypeVar("Result")


class PrefillService:
    """Handlers of a prefill shard; arithmetic has a thread of its own, so that tensors move.

    Args:
        data: the loop that `plane` lives on.
    """

    def __init__(self, model: Llama, plane: Plane, data: DataLoop) -> None:
        self._model = model
        self._plane = plane
        self._data = data
        self._compute = ThreadPoolExecutor(1, "compute")
        self._inboxes: dict[tuple[str, int], Inbox] = {}
        """On the data loop."""

    async def join(self, request: Join) -> AsyncIterator[Done]:
        key = (request.request, request.epoch)
        try:
            await self._data.run(self._open(key))
            yield Done()
            await forever()
        finally:
            self._data.post(lambda: self._close(key))

    async def prefill(self, request: Prefill) -> AsyncIterator[Prefilled | Deposited]:
        control = asyncio.get_running_loop()

        async def job(emit: Callable[[Prefilled | Deposited], None]) -> None:
            def prefilled(item: Prefilled) -> None:
                control.call_soon_threadsafe(emit, item)

            emit(await self._data.run(self._prefill(request, prefilled)))

        async for item in emitted_by(job):
            yield item

    def close(self) -> None:
        self._compute.shutdown(cancel_futures=True)

    async def _prefill(self, request: Prefill, prefilled: Callable[[Prefilled], None]) -> Deposited:
        inbox = self._inboxes.get((request.request, request.epoch))
        if inbox is None:
            raise Invalid(f"request {request.request} was not joined in epoch {request.epoch}")
        return await run_prompt(self._model, self._plane, inbox, request, self._run, prefilled)

    async def _open(self, key: tuple[str, int]) -> None:
        if key in self._inboxes:
            raise Invalid(f"request {key[0]} was joined in epoch {key[1]} already")
        self._inboxes[key] = self._plane.open(*key)

    def _close(self, key: tuple[str, int]) -> None:
        if inbox := self._inboxes.pop(key, None):
            inbox.close()

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._compute, work)
