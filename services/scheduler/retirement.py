"""Lets shards leave without harm: they get no new work, and are idle once they have none."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from weakref import WeakValueDictionary

from sps2.common.bus.peer import Peer
from sps2.common.errors import Invalid, Refused, ServiceError
from sps2.common.messages import (
    Done,
    Drain,
    Forget,
    KeepDraining,
    Retire,
    Undrain,
    Unfinished,
)
from sps2.common.words import counted
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.events import Employed, Event, HandedOver, Retired
from sps2.services.scheduler.fleet import Fleet

POLL_S = 0.05
AGAIN_S = 0.5
"""Pause before what a shard still has is told again to go on elsewhere."""
REMEMBER_S = 5.0
"""How long a shard may take to note that it drains."""

log = logging.getLogger(__name__)


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
        self._noting = WeakValueDictionary[str, asyncio.Lock]()
        """Held while a shard notes whether it drains, by id."""
        self._ending: dict[str, str] = {}
        """The data-plane names of members that were told to end, by id."""

    async def drain(self, request: Drain) -> AsyncGenerator[Unfinished, None]:
        await self._begin(request.shard)
        async for unfinished in self._unfinished(request.shard, request.finish_s):
            yield unfinished

    async def retire(self, request: Retire) -> AsyncGenerator[Unfinished, None]:
        if member := self._core.fleet.members.get(request.shard):
            self._ending[request.shard] = member.shard.peer.name
        self._handle(Retired(request.shard))
        async for unfinished in self._unfinished(request.shard, request.finish_s):
            yield unfinished

    async def undrain(self, request: Undrain) -> Done:
        shard = request.shard
        async with self._noting.setdefault(shard, asyncio.Lock()):
            leaving = self._core.fleet.leaving
            if shard not in leaving:
                there = ", ".join(sorted(leaving)) or "none"
                raise Invalid(f"{shard} does not drain: nothing to undo; drained: {there}", "shard")
            self._check_stays(shard)
            await self._shards[shard].call(KeepDraining(False), REMEMBER_S)
            self._check_stays(shard)
            self._handle(Employed(shard))
        log.info("%s gets work again", shard)
        return Done()

    async def forget(self, request: Forget) -> Done:
        self._handle(Retired(request.shard))
        return Done()

    async def _begin(self, shard: str) -> None:
        """Let a shard drain, and note that it does.

        It counts as draining from the check on, so that a second drain cannot take what is left
        while the first shard notes it.

        Raises:
            Invalid: it cannot be spared.
            ServiceError: it could not note that it drains, and works on.
        """
        async with self._noting.setdefault(shard, asyncio.Lock()):
            fleet = self._core.fleet
            _check_spare(shard, fleet)
            drained = shard in fleet.leaving
            self._handle(Retired(shard))
            log.info("%s drains; %s", shard, counted(len(self._core.needing(shard)), "request"))
            try:
                await self._shards[shard].call(KeepDraining(True), REMEMBER_S)
            except ServiceError:
                if not drained and not self._is_ending(shard):
                    self._handle(Employed(shard))
                raise

    def _is_ending(self, shard: str) -> bool:
        """Whether a member was told to end since it joined."""
        member = self._core.fleet.members.get(shard)
        return member is not None and self._ending.get(shard) == member.shard.peer.name

    def _check_stays(self, shard: str) -> None:
        """Raise Refused if a shard is about to end."""
        if self._is_ending(shard):
            raise Refused(f"{shard} is ending; it gets work again when it is back")

    async def _unfinished(self, shard: str, finish_s: float) -> AsyncGenerator[Unfinished, None]:
        """What a shard that gets no new work still has, until that is nothing.

        It ends early if the shard does, or drains no more.
        """
        core, until_s = self._core, time.monotonic() + finish_s
        reported: tuple[str, ...] | None = None
        while shard in core.fleet.leaving:
            requests = core.needing(shard)
            if requests != reported:
                yield Unfinished(requests)
                reported = requests
            if not requests:
                log.info("%s is drained", shard)
                return
            if time.monotonic() >= until_s:
                log.info("%s hands %s over", shard, counted(len(requests), "request"))
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
            end = f"to restart it, `spsctl restart {shard}`; to end all, `spsctl down`"
            raise Invalid(f"without {shard} no shard would {does}; {end}", "shard")
