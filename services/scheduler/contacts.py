"""How a job reaches the shards of its request."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from sps2.common.bus.peer import Peer
from sps2.common.errors import PeerLost
from sps2.common.messages import Peer as DataPeer
from sps2.common.messages import Shard
from sps2.services.scheduler.job_listener import Listener


class Contacts:
    """The shards of a request, as they were when it was planned, and their peers on the bus.

    Args:
        peers, shards: by id, for every shard of the plan.
        listener: is notified of losses.
    """

    def __init__(
        self, peers: Mapping[str, Peer], shards: Mapping[str, Shard], listener: Listener
    ) -> None:
        self._peers = dict(peers)
        self._shards = dict(shards)
        self._listener = listener

    def add(self, peers: Mapping[str, Peer], shards: Mapping[str, Shard]) -> None:
        """The request has more shards; those that it had stay as they were."""
        self._peers = {**peers, **self._peers}
        self._shards = {**shards, **self._shards}

    @property
    def shards(self) -> Collection[str]:
        """The ids of the request's shards."""
        return self._shards.keys()

    def bus(self, shard: str) -> Peer:
        return self._peers[shard]

    def address(self, shard: str) -> str:
        return self._shards[shard].address

    def planes(self, *shards: str) -> tuple[DataPeer, ...]:
        """The data planes of some shards, or of all if none is named."""
        return tuple(peer for shard in shards or self._shards for peer in self._shards[shard].peers)

    @contextmanager
    def reporting(self, shard: str) -> Iterator[None]:
        """Notify the listener if the call fails because a peer was lost: the called shard, or one
        that this shard has lost on the data plane."""
        try:
            yield
        except PeerLost as lost:
            if lost.peer == self._peers[shard].name:
                self._listener.lost(self._shards[shard], self._peers[shard])
            else:
                self._listener.parted(self._shards[shard], lost.peer)
            raise
