"""A prefill shard on the bus."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sps2.common.messages import Prefill, Prefilled
from sps2.common.model.llama import Llama
from sps2.common.transport.plane import Plane
from sps2.services.prefill.prompt import run_prompt
from sps2.services.shard import DataLoop

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

    async def prefill(self, request: Prefill) -> Prefilled:
        return await self._data.run(run_prompt(self._model, self._plane, request, self._run))

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._compute, work)

    def close(self) -> None:
        self._compute.shutdown(cancel_futures=True)
