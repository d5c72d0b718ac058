"""A cluster to simulate: its configuration, its model, and what its hardware takes."""

from collections.abc import Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from sps2.cli.simulator.profile import Profile
from sps2.cli.simulator.sharing import sharing_of
from sps2.common.config import Cluster
from sps2.common.messages import Follower, Peer, Role, Shard
from sps2.common.model.config import ModelConfig
from sps2.services.scheduler.schemes import Schemes

ROLES: tuple[Role, ...] = ("prefill", "decode", "mixed")


@dataclass(frozen=True)
class Setup:
    """What a simulation is about.

    config: as `spsctl up` takes it: numbers of shards, policy, KV, sharing, attention.
    itemsize: bytes of an activation. pages: of one shard's KV pool.
    """

    config: Cluster
    model: ModelConfig
    itemsize: int
    profile: Profile
    pages: int

    def schemes(self) -> Schemes:
        """How prefill groups may work together, as the scheduler knows it.

        What the cluster would measure is as the profile says.
        """
        config, profiled = self.config, sharing_of(self.profile, self.model)
        rates = {
            name: getattr(profiled, name)
            for name in ("gflops", "link_gbit", "link_latency_s")
            if getattr(config.sharing, name) == "measured"
        }
        if "gflops" in rates:
            rates["attention_rate"] = profiled.attention_rate
        sharing = replace(config.sharing, **rates)
        return Schemes(self.model, self.itemsize, sharing, config.attention, None, config.tp)

    def shards(self) -> Iterator[Shard]:
        """The shards as they first join."""
        for role in ROLES:
            for index in range(self.config.shards_of(role)):
                yield self.shard(role, index)

    def shard(self, role: Role, index: int, life: int = 0) -> Shard:
        """A shard as it joins for the `life`th time."""
        name, shares = f"{role}-{index}", self.profile.cores > 0
        host = "host-0" if shares else f"host-{name}"
        keeps = role != "prefill"
        followers = tuple(
            Follower(f"{host}:{rank}", Peer(f"{name}.{rank}/{life}", f"{host}:{rank}", b""))
            for rank in range(1, self.config.tp_of(role))
        )
        return Shard(
            name,
            role,
            0,
            f"{host}:0",
            Peer(f"{name}/{life}", f"{host}:0", b""),
            self.pages if keeps else 0,
            self.config.kv.page_tokens if keeps else 0,
            followers,
            1,
            max(1, round(self.profile.cores)),
        )

    @property
    def summary(self) -> str:
        """For people, as `4 prefill + 4 decode x NVIDIA H100`."""
        config = self.config
        counts = [(role, config.shards_of(role)) for role in ROLES]
        shards = " + ".join(f"{count} {role}" for role, count in counts if count)
        tp = f" (TP {config.tp})" if config.tp > 1 else ""
        return f"{shards} x {self.profile.machine}{tp}"
