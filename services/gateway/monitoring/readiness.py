"""Polls whether the cluster can serve, so that requests need not wait to find out."""

import asyncio
import math
from contextlib import suppress

from sps2.common.bus.peer import Peer
from sps2.common.config import Bus
from sps2.common.errors import Invalid, ServiceError
from sps2.common.messages import ShowFleet
from sps2.services.compatibility import greet

NOW_S = 0.5
SOON_S = 0.2
OFTEN_S = 1.0
AWAY_S = 30.0
"""How long requests wait for a cluster that accepted them before: something of it restarts."""


class Readiness:
    """Whether requests are accepted, and what is missing, as of the last poll."""

    def __init__(self, scheduler: Peer, bus: Bus, away_s: float = AWAY_S) -> None:
        self._scheduler = scheduler
        self._deadline_s = bus.heartbeat_s * bus.missed_heartbeats
        self._away_s = away_s
        self._missing = "the scheduler"
        self._serving = False
        self._served_s = -math.inf
        """When it was last seen to serve."""
        self._serves = asyncio.Event()
        self._greeted = False

    def waiting_for(self) -> str:
        """Empty when requests are accepted; else what is missing for that, in words."""
        return "" if self._serving else self._missing

    def missing(self) -> str:
        """Empty when every shard is present; else what is missing, in words.

        Requests may be accepted all the same.
        """
        return self._missing

    @property
    def serves(self) -> bool:
        """Whether requests are accepted; shards may be missing all the same."""
        return self._serving

    async def now(self) -> str:
        """Empty when requests are accepted; else what is missing for that, as of now."""
        if not self._serving:
            await self._ask(NOW_S)
        return self.waiting_for()

    async def obstacle(self) -> str:
        """As `now`, but waits for what was there until `away_s` ago, and may be back soon."""
        if await self.now():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._served_s + self._away_s):
                    await self._serves.wait()
        return self.waiting_for()

    async def watch(self) -> None:
        """Poll until cancelled."""
        while True:
            await self._ask(self._deadline_s)
            await asyncio.sleep(SOON_S if self._missing else OFTEN_S)

    async def _ask(self, deadline_s: float) -> None:
        try:
            if not self._greeted:
                await greet(self._scheduler, "gateway", deadline_s)
                self._greeted = True
            fleet = await self._scheduler.call(ShowFleet(), deadline_s)
            self._missing, self._serving = fleet.waiting_for, fleet.serving
            if fleet.serving:
                self._served_s = asyncio.get_running_loop().time()
        except ServiceError as error:
            why = f" ({error})" if isinstance(error, Invalid) else ""
            self._missing = f"the scheduler at {self._scheduler.address}{why}"
            self._serving = self._greeted = False
        (self._serves.set if self._serving else self._serves.clear)()
