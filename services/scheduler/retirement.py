"""Lets shards leave without harm: they get no new work, and are idle once they have none."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping

from sps2.common.bus.peer import Peer
from sps2.common.errors import Invalid
from sps2.common.messages import (
    Done,
    Drain,
    Forget,
    KeepDraining,
    Retire,
    Undrain,
    Unfinished,
)
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import Employed, Event, HandedOver, Retired
from sps2.services.scheduler.fleet import Fleet

POLL_S = 0.05
AGAIN_S = 0.5
"""Pause before what a shard still has is told again to go on elsewhere."""
REMEMBER_S = 5.0
"""How long a shard may take to note that it drains."""


class Retirement:
    """Handlers of `Drain`, `Retire`, `Undrain` and `Forget`.

    Args:
        shards: the connections to shards, by id.
        handle: takes events for the core.
    """

    def __init__(
        self, core: Core, shards: Mapping[str, Peer], handle: Callable[[Event], None]
    ) -> None:
        self._core = core
        self._shards = shards
        self._handle = handle

    async def drain(self, request: Drain) -> AsyncGenerator[Unfinished, None]:
        _check_spare(request.shard, self._core.fleet)
        await self._shards[request.shard].call(KeepDraining(True), REMEMBER_S)
        async for unfinished in self._retired(request.shard, request.finish_s):
            yield unfinished

    async def retire(self, request: Retire) -> AsyncGenerator[Unfinished, None]:
        async for unfinished in self._retired(request.shard, request.finish_s):
            yield unfinished

    async def undrain(self, request: Undrain) -> Done:
        leaving = self._core.fleet.leaving
        if request.shard not in leaving:
            there = ", ".join(sorted(leaving)) or "no shard does"
            raise Invalid(f"{request.shard} does not drain; these do: {there}", "shard")
        await self._shards[request.shard].call(KeepDraining(False), REMEMBER_S)
        self._handle(Employed(request.shard))
        return Done()

    async def forget(self, request: Forget) -> Done:
        self._handle(Retired(request.shard))
        return Done()

    async def _retired(self, shard: str, finish_s: float) -> AsyncGenerator[Unfinished, None]:
        """Give a shard no new work; what it still has, until that is nothing.

        It ends early if the shard does, or drains no more.
        """
        core, until_s = self._core, time.monotonic() + finish_s
        self._handle(Retired(shard))
        reported: tuple[str, ...] | None = None
        while shard in core.fleet.leaving:
            requests = core.needing(shard)
            if requests != reported:
                yield Unfinished(requests)
                reported = requests
            if not requests:
                return
            if time.monotonic() >= until_s:
                self._handle(HandedOver(shard))
                until_s = time.monotonic() + AGAIN_S
            await asyncio.sleep(POLL_S)


def _check_spare(shard: str, fleet: Fleet) -> None:
    """Raise Invalid unless a shard is there, and others do what it does."""
    if shard not in fleet.members:
        there = ", ".join(sorted(fleet.members)) or "none yet"
        state = "is lost" if shard in fleet.lost else "is not a shard of this cluster"
        raise Invalid(f"{shard} {state}; there are {there}", "shard")
    rest = fleet.without(shard)
    for members, does in ((rest.prefillers(), "prefill"), (rest.keepers(), "decode")):
        if not members:
            raise Invalid(f"without {shard} no shard would {does}", "shard")
