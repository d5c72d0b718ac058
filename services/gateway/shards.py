"""Connections to shards, one per address: to follow tokens, and to query their state."""

import asyncio

import zmq.asyncio

from sps2.common.bus.peer import Peer
from sps2.common.config import Bus


class Shards:
    """Opens connections when they are first needed, and drops lost ones."""

    def __init__(self, bus: Bus, context: zmq.asyncio.Context | None = None) -> None:
        self._bus = bus
        self._context = context
        self._peers: dict[str, Peer] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def at(self, address: str, name: str) -> Peer:
        """The connection to shard `name` at `address`."""
        if address not in self._peers:
            self._peers[address] = Peer(address, self._bus, name, self._context)
        return self._peers[address]

    def drop(self, peer: Peer) -> None:
        """Close and forget the connection to a lost shard; its successor has a new address."""
        if self._peers.get(peer.address) is peer:
            del self._peers[peer.address]
            task = asyncio.create_task(peer.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all connections."""
        for peer in list(self._peers.values()):
            self.drop(peer)
        await asyncio.gather(*self._closing)
