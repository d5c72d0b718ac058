"""Shards: where they are, and that they are there."""

from sps2.common.messages.base import Done, Role, Stream, Struct


class Peer(Struct, frozen=True):
    """Where a shard's data plane listens. `name` is unique to one life of one process.

    Whoever has `token`, which is secret, was introduced to it, and may open links.
    """

    name: str
    address: str
    token: bytes

    def __repr__(self) -> str:
        return f"Peer({self.name!r}, {self.address!r})"


class Follower(Struct, frozen=True):
    """A process of a shard other than its leader."""

    address: str
    """Of its control bus."""
    peer: Peer


class Shard(Struct, frozen=True):
    """A worker as its leader presents it. `peer.name` changes with every restart, `id` does not."""

    id: str
    role: Role
    pid: int
    address: str
    """Of its control bus."""
    peer: Peer
    pages: int = 0
    """Size of its KV pool; 0 on prefill shards, which keep no KV."""
    page_tokens: int = 0
    followers: tuple[Follower, ...] = ()
    """The other processes of a tensor-parallel shard, in order of their TP rank."""

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The data planes of its processes, by TP rank."""
        return (self.peer, *(follower.peer for follower in self.followers))


class Lead(Stream[Done], frozen=True):
    """Leader to follower: both belong to one shard while this is open. One item: accepted."""


class Register(Stream[Done], frozen=True):
    """Shard to scheduler: the shard is a member while this is open. One item: accepted."""

    shard: Shard
