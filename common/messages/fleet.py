"""Messages by which shards announce themselves."""

from typing import Literal

from sps2.common.messages.base import Done, Request, Role, Stream, Struct


class Peer(Struct, frozen=True):
    """The address of a shard process's data plane. `name` changes when the process restarts.

    A peer that knows the secret `token` was introduced to the process, and may open links to it.
    """

    name: str
    address: str
    token: bytes

    def __repr__(self) -> str:
        return f"Peer({self.name!r}, {self.address!r})"


class Follower(Struct, frozen=True):
    """A process of a shard that is not its leader."""

    address: str
    """The address of its control bus."""
    peer: Peer


class Shard(Struct, frozen=True):
    """A shard as its leader presents it. `peer.name` changes with every restart, `id` does not."""

    id: str
    role: Role
    pid: int
    address: str
    """The address of its control bus."""
    peer: Peer
    pages: int = 0
    """Size of its KV pool; 0 on prefill shards, which keep no KV."""
    page_tokens: int = 0
    followers: tuple[Follower, ...] = ()
    """The other processes of the shard, in order of their rank."""
    threads: int = 1
    """Compute threads of one process."""
    cores: int = 1
    """Cores that one process may use; those of its machine are shared with other shards."""
    gflops: float = 0.0
    """GFLOP/s of the model's matrix products, as it measured when it started; 0: it did not."""

    @property
    def host(self) -> str:
        """The host of its control bus: shards of one machine may have the same."""
        return self.address.rpartition(":")[0]

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The data planes of its processes, by rank."""
        return (self.peer, *(follower.peer for follower in self.followers))


class Lead(Stream[Done], frozen=True):
    """Leader to follower: they form one shard while this is open. The first item: accepted; the
    second: the follower is told to end, and so is the shard."""


class Met(Struct, frozen=True, tag=True):
    """The numbers of all stages, in order, and the addresses of those that follow."""

    numbers: tuple[int, ...]
    followers: tuple[Follower, ...]


class Meet(Stream[Met], frozen=True):
    """Stage of a pipeline-parallel shard to scheduler: answer once all stages are there."""

    shard: str
    rank: int
    size: int
    about: Literal["pages", "addresses"]
    """What they meet for: `number` has a stage's pages of KV, `follower` its addresses."""
    number: int = 0
    follower: Follower | None = None


class Register(Stream[Done], frozen=True):
    """Shard to scheduler: the shard is a member while this is open. One item: accepted."""

    shard: Shard
    draining: bool = False
    """Whether it gets no new work, as an earlier scheduler was told."""


class Measures(Struct, frozen=True):
    """What a shard has measured: its own GFLOP/s (0: not asked for), and the way to a partner.

    sent_gbit, received_gbit: Gbit/s to and from it. latency_s: seconds, one way.
    """

    gflops: float
    sent_gbit: float
    received_gbit: float
    latency_s: float


class Measure(Request[Measures], frozen=True):
    """Scheduler to shard: measure the way to a partner, and your own rate if `computes`.

    PeerLost if the partner does not answer.
    """

    partner: Peer
    computes: bool
