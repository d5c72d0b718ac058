"""The other gateways of the cluster, which answer on the same HTTP port."""

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from sps2.common.bus.peer import Peer
from sps2.common.bus.probe import knock
from sps2.common.config import Cluster
from sps2.common.errors import Cancelled, PeerLost
from sps2.common.messages import Request
from sps2.services.gateway.names import number_in

R = TypeVar("R")

CONNECT_S = 2.0
DEADLINE_S = 5.0


def place_of(cluster: Cluster, number: int) -> str:
    """Where the other gateways reach a gateway: a socket of this machine, without a file."""
    return f"ipc://@sps2-{cluster.host_of('gateway')}-{cluster.gateway.port}-{number}"


class Others:
    """The other gateways, by number; none where there is only one.

    Args:
        number: of this gateway.
    """

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.number = number
        self.peers = {
            each: Peer(place_of(cluster, each), cluster.bus, name, connect_s=CONNECT_S)
            for each, name in enumerate(cluster.gateway_names())
            if each != number
        }

    def __bool__(self) -> bool:
        return bool(self.peers)

    def holder(self, answer_id: str) -> Peer | None:
        """The other gateway that gave an id; None if this one did, or none that there is."""
        return self.peers.get(number_in(answer_id)) if self.peers else None

    async def has_ended(self, peer: Peer) -> bool:
        """Whether one of them has ended, with all that it had, and is not started again yet. One
        that stands still has not."""
        return not peer.is_connected and await knock(peer.address) == "nobody"

    async def ask(self, peer: Peer, request: Request[R]) -> R | None:
        """Ask one of them; None if it has ended. Raises PeerLost as `call` does."""
        if await self.has_ended(peer):
            return None
        try:
            return await peer.call(request, DEADLINE_S)
        except (Cancelled, PeerLost):
            if await self.has_ended(peer):
                return None
            raise _away(peer) from None

    async def call(self, peer: Peer, request: Request[R]) -> R:
        """Ask one of them. Raises PeerLost, for a client, if it does not answer."""
        answer = await self.ask(peer, request)
        if answer is None:
            raise _away(peer)
        return answer

    async def all(self, own: R, request: Request[R]) -> Sequence[R]:
        """The answers of all gateways in the order of their numbers, `own` among them.

        Raises:
            PeerLost: one is away, so that no answer would be complete.
        """
        numbers = [*self.peers]
        found = await asyncio.gather(*(self.call(self.peers[each], request) for each in numbers))
        answers = dict(zip(numbers, found, strict=True)) | {self.number: own}
        return [answers[each] for each in sorted(answers)]

    async def close(self) -> None:
        """Disconnect."""
        await asyncio.gather(*(peer.close() for peer in self.peers.values()))


def _away(peer: Peer) -> PeerLost:
    return PeerLost(peer.name, f"{peer.name}, which may have what is asked for, is away: try again")
