"""Lets a shard leave without harm: it gets no new work, and ends when it has none."""

import asyncio
from collections.abc import Callable

from sps2.common.messages import Done, Retire
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import Event, Retired

POLL_S = 0.05


class Retirement:
    """Handler of `Retire`."""

    def __init__(self, core: Core, handle: Callable[[Event], None]) -> None:
        self._core = core
        self._handle = handle

    async def retire(self, request: Retire) -> Done:
        self._handle(Retired(request.shard))
        fleet = self._core.fleet
        while True:
            if request.shard not in fleet.leaving or fleet.members[request.shard].is_idle:
                return Done()
            await asyncio.sleep(POLL_S)
