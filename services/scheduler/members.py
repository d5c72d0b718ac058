"""Which shards have registered, how to reach them, and why others could not register."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable

from sps2.common.bus.peer import Peer
from sps2.common.config import Bus
from sps2.common.errors import Cancelled, Invalid
from sps2.common.messages import Describe, Done, Register, Shard

REACH_S = 5.0
"""How long it may take to connect to a shard that registers."""

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
        previous, self.peers[shard.id] = self.peers.get(shard.id), peer
        self._leave(shard.id)
        if previous is not None:
            await previous.close()  # calls from before its restart end now
        left = asyncio.Event()
        try:
            await self._check(shard, peer)
            if self.peers[shard.id] is not peer:
                return
            log.info("%s joined (%s, pid %d)", shard.id, shard.peer.address, shard.pid)
            self._registered[shard.id] = shard, left
            self._joined(request)
            yield Done()
            await left.wait()
        finally:
            self.lose(shard, peer)
            await peer.close()

    def lose(self, shard: Shard, peer: Peer) -> None:
        """Remove a shard: a call over this connection failed, or the shard stopped registering."""
        if self.peers.get(shard.id) is peer and shard.id in self._registered:  # not registered anew
            log.warning("%s was lost (%s)", shard.id, shard.peer.name)
            self._leave(shard.id)

    def shard(self, id: str) -> Shard | None:
        """A shard that is registered."""
        shard, _ = self._registered.get(id, (None, None))
        return shard

    async def close(self) -> None:
        """Disconnect from all shards."""
        for peer in self.peers.values():
            await peer.close()

    def _leave(self, shard_id: str) -> None:
        if shard_id in self._registered:
            shard, left = self._registered.pop(shard_id)
            left.set()
            self._lost(shard)

    async def _check(self, shard: Shard, peer: Peer) -> None:
        self.unfit.pop(shard.id, None)
        try:
            await peer.call(Describe(), REACH_S)
        except Cancelled:
            self.unfit[shard.id] = (
                f"the scheduler cannot reach {shard.id} at {shard.address}: is that its address, "
                "and are its ports open to the scheduler's host?"
            )
            raise Invalid(self.unfit[shard.id]) from None
