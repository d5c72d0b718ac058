"""What gateways tell each other at once: what API keys use up, and which turns were sampled.

So the quota of a key holds for all gateways together, and a conversation that comes back to another
gateway is still tokenised as it was sampled.
"""

import asyncio
from array import array
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from sps2.common.bus.peer import Peer
from sps2.common.errors import Refused, ServiceError
from sps2.common.messages import Stream, Struct
from sps2.services.gateway.keys.api_keys import Register
from sps2.services.gateway.keys.quota import Account
from sps2.services.gateway.others.gateways import Others
from sps2.services.gateway.turn_memory import TurnMemory

UNHEARD = 4096
"""Items that may wait for a gateway that does not listen; then it has to begin again."""
AGAIN_S = 0.2


class Spent(Struct, frozen=True, tag=True):
    """An API key, by its name, used up requests and tokens; negative numbers are given back."""

    key: str
    requests: int
    tokens: int


class Used(Struct, frozen=True, tag=True):
    """What an API key has used up of its minute so far."""

    key: str
    requests: float
    tokens: float


class Turn(Struct, frozen=True, tag=True):
    """A turn that was sampled; see `TurnMemory`."""

    key: bytes
    ids: bytes
    """Token ids, little-endian int32."""
    opening: str


class Overhear(Stream["Spent | Used | Turn"], frozen=True):
    """Gateway to gateway: tell what is told to all from now on, and before it what keys have used.

    `turns` asks for the turns that are remembered, too.
    """

    turns: bool


class Talk:
    """Tells the other gateways, and hears them.

    Args:
        register: the API keys; None if the cluster has none.
        turns: the sampled turns.
    """

    def __init__(self, others: Others, register: Register | None, turns: TurnMemory) -> None:
        self._others = others
        self._register = register
        self._turns = turns
        self._listeners: set[asyncio.Queue[Spent | Turn]] = set()
        turns.remembered = self._remembered
        if register is not None:
            register.spent = self._spent

    async def overhear(self, request: Overhear) -> AsyncGenerator[Spent | Used | Turn, None]:
        told: asyncio.Queue[Spent | Turn] = asyncio.Queue(UNHEARD)
        self._listeners.add(told)
        accounts = self._register.accounts() if self._register else ()
        used = [Used(account.name, *account.used()) for account in accounts]
        turns = self._turns.turns() if request.turns else ()
        try:
            for each in used:
                yield each
            for key, ids, opening in turns:
                yield Turn(key, ids.tobytes(), opening)
            while not told.full():
                yield await told.get()
        finally:
            self._listeners.discard(told)
        raise Refused("too much was told that this gateway did not hear")

    async def run(self) -> None:
        """Hear all other gateways until cancelled."""
        async with asyncio.TaskGroup() as group:
            for peer in self._others.peers.values():
                group.create_task(self._listen(peer))

    async def _listen(self, peer: Peer) -> None:
        while True:
            with suppress(ServiceError):
                async with peer.stream(Overhear(not self._turns)) as items:
                    async for item in items:
                        self._hear(item)
            await asyncio.sleep(AGAIN_S)

    def _hear(self, item: Spent | Used | Turn) -> None:
        match item:
            case Turn(key, ids, opening):
                self._turns.add(key, array("i", ids), opening)
            case Spent(key, requests, tokens) if account := self._account(key):
                account.spend(requests, tokens)
            case Used(key, requests, tokens) if account := self._account(key):
                account.has_used(requests, tokens)

    def _account(self, key: str) -> Account | None:
        return None if self._register is None else self._register.named(key)

    def _spent(self, key: str, requests: int, tokens: int) -> None:
        self._tell(Spent(key, requests, tokens))

    def _remembered(self, key: bytes, ids: Sequence[int], opening: str) -> None:
        self._tell(Turn(key, array("i", ids).tobytes(), opening))

    def _tell(self, item: Spent | Turn) -> None:
        for listener in self._listeners:
            with suppress(asyncio.QueueFull):
                listener.put_nowait(item)
