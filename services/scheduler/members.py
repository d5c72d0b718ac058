"""Which shards have registered, how to reach them, and why others could not register."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection

from sps2.common.bus.peer import Peer
from sps2.common.config import Bus
from sps2.common.errors import Cancelled, Invalid, ServiceError
from sps2.common.messages import Describe, Done, Register, Shard
from sps2.services.tasks import gather_all

REACH_S = 5.0
"""How long it may take to connect to a shard that registers."""
ASK_S = 1.0
"""How long a process of a shard may take to say that it is there, if its connection is lost."""

log = logging.getLogger(__name__)


class Members:
    """Shards are members for as long as they stay registered, or until a call to them fails.

    Args:
        joined, lost: called on every change.
    """

    def __init__(
        self, bus: Bus, joined: Callable[[Register], None], lost: Callable[[Shard], None]
    ) -> None:
        self.peers: dict[str, Peer] = {}
        """The connections to shards, by id."""
        self._followers: dict[str, list[Peer]] = {}
        """The connections to the other processes of shards that have several, by shard."""
        self.unfit: dict[str, str] = {}
        """Why shards that tried to register are not members, by id."""
        self._bus = bus
        self._joined = joined
        self._lost = lost
        self._registered: dict[str, tuple[Shard, asyncio.Event]] = {}
        """With the event that ends the registration: a shard that still works registers again."""

    async def register(self, request: Register) -> AsyncGenerator[Done, None]:
        """Make a shard a member while this is iterated; the iteration ends if the shard is lost.

        Raises:
            Invalid: the shard cannot be reached.
        """
        shard = request.shard
        peer = Peer(shard.address, self._bus, name=shard.id)
        followers = [
            Peer(follower.address, self._bus, name=f"{shard.id}.{rank}")
            for rank, follower in enumerate(shard.followers, 1)
        ]
        previous, self.peers[shard.id] = self.peers.get(shard.id), peer
        self._followers[shard.id] = followers
        self._leave(shard.id)
        if previous is not None:
            await previous.close()  # calls from before its restart end now
        left = asyncio.Event()
        try:
            await self._check(shard, [peer, *followers])
            if self.peers[shard.id] is not peer:
                return
            log.info("%s joined (%s, pid %d)", shard.id, shard.peer.address, shard.pid)
            self._registered[shard.id] = shard, left
            self._joined(request)
            yield Done()
            await left.wait()
        finally:
            self.lose(shard, peer)
            await gather_all(*(each.close() for each in (peer, *followers)))

    def lose(self, shard: Shard, peer: Peer) -> None:
        """Remove a shard: a call over this connection failed, or the shard stopped registering."""
        if self.peers.get(shard.id) is peer and shard.id in self._registered:  # not registered anew
            log.warning("%s was lost (%s)", shard.id, shard.peer.name)
            self._leave(shard.id)

    async def ask(self, shards: Collection[str]) -> None:
        """Ask every process of some shards whether it is there: if one is gone, its shard is lost.

        Others may report that a follower is gone before its leader has ended. A process that is
        slow to answer counts as there for as long as it stays connected.
        """
        await gather_all(*(self._ask(id) for id in shards if id in self._registered))

    def shard(self, id: str) -> Shard | None:
        """A shard that is registered."""
        shard, _ = self._registered.get(id, (None, None))
        return shard

    async def close(self) -> None:
        """Disconnect from all shards."""
        followers = (each for led in self._followers.values() for each in led)
        await gather_all(*(each.close() for each in (*self.peers.values(), *followers)))

    def _leave(self, shard_id: str) -> None:
        if shard_id in self._registered:
            shard, left = self._registered.pop(shard_id)
            left.set()
            self._lost(shard)

    async def _ask(self, shard_id: str) -> None:
        async def is_there(process: Peer) -> bool:
            try:
                await process.call(Describe(), ASK_S)
            except ServiceError:
                return process.is_connected
            return True

        shard, _ = self._registered[shard_id]
        peer = self.peers[shard_id]
        processes = (peer, *self._followers[shard_id])
        if not all(await gather_all(*map(is_there, processes))):
            self.lose(shard, peer)

    async def _check(self, shard: Shard, processes: Collection[Peer]) -> None:
        self.unfit.pop(shard.id, None)
        for process in processes:
            try:
                await process.call(Describe(), REACH_S)
            except Cancelled:
                self.unfit[shard.id] = (
                    f"the scheduler cannot reach {process.name} at {process.address}: is that its "
                    "address, and are its ports open to the scheduler's host?"
                )
                raise Invalid(self.unfit[shard.id]) from None
