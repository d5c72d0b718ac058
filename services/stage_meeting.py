"""How the stages of a pipeline-parallel shard meet: at the scheduler, from any machine."""

import asyncio
from contextlib import suppress
from typing import Literal

from sps2.common.bus.peer import Peer
from sps2.common.config import Cluster
from sps2.common.errors import PeerLost, Refused
from sps2.common.messages import Follower, Meet, Met
from sps2.services.tasks import end
from sps2.services.tp_processes import MEETING_S

AGAIN_S = 0.1
"""Pause before a stage meets again after the scheduler was lost."""


class StageTeam:
    """The stages of one shard, seen from one of them; as `Team`, without collectives."""

    collectives = None

    def __init__(self, cluster: Cluster, shard: str, rank: int, size: int) -> None:
        self._scheduler = Peer(cluster.scheduler_address, cluster.bus, name="scheduler")
        self._shard = shard
        self._rank = rank
        self._size = size
        self._presenting: asyncio.Task[Met] | None = None

    async def close(self) -> None:
        """Stop meeting."""
        if self._presenting is not None:
            await end(self._presenting)
            with suppress(asyncio.CancelledError, Refused):
                self._presenting.result()
        await self._scheduler.close()

    async def agreed(self, number: int) -> int:
        """The smallest number of all stages; each must call this once."""
        return min((await self._meet("pages", number)).numbers)

    def present(self, follower: Follower) -> None:
        """Publish the addresses of this process for the leader."""
        meeting = self._meet("addresses", follower=follower)
        self._presenting = asyncio.create_task(meeting, name="presenting")

    async def followers(self) -> tuple[Follower, ...]:
        """The addresses of the other stages; waits until all of them have published theirs."""
        return (await self._meet("addresses")).followers

    async def _meet(
        self,
        about: Literal["pages", "addresses"],
        number: int = 0,
        follower: Follower | None = None,
    ) -> Met:
        request = Meet(self._shard, self._rank, self._size, about, number, follower)
        try:
            async with asyncio.timeout(MEETING_S):
                while True:
                    with suppress(PeerLost):
                        return await self._met(request)
                    await asyncio.sleep(AGAIN_S)
        except TimeoutError:
            raise Refused(
                f"the {self._size} stages of {self._shard} did not all come to the scheduler in "
                f"{MEETING_S:.0f} s: see `spsctl status` and `spsctl logs`"
            ) from None

    async def _met(self, request: Meet) -> Met:
        async with self._scheduler.stream(request) as items:
            async for item in items:
                return item
        raise PeerLost("scheduler")
