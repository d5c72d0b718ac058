"""The processes of a cluster, by the names that they have in logs and status."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from sps2.common.config import Cluster
from sps2.common.messages import Role


def service_names(cluster: Cluster) -> list[str]:
    """Every process of a cluster."""
    shards = [name for role in get_args(Role) for name in _shards(cluster, role)]
    return ["gateway", "scheduler", "kvdir", *shards]


def units(services: Iterable[str]) -> list[list[str]]:
    """Processes that live and die together: those of one shard; other services are alone."""
    grouped = itertools.groupby(services, lambda name: name.partition(".")[0])
    return [list(names) for _, names in grouped]


def start_of(service: str, config: Path) -> list[str]:
    """What follows the interpreter to start a service."""
    module, _, shard = service.partition("-")
    index, _, rank = shard.partition(".")
    argv = ["-m", f"sps2.services.{module}", "--config", str(config)]
    argv += ["--index", index] if index else []
    return argv + (["--rank", rank] if rank else [])


def environment(service: str, threads: int) -> dict[str, str]:
    """What a service needs in its environment; `threads` are those of one shard's process."""
    return {
        "OMP_NUM_THREADS": str(threads if "-" in service else 1),
        # threads that spin while they wait take the cores from the other shards
        "OMP_WAIT_POLICY": "passive",
    }


def _shards(cluster: Cluster, role: Role) -> list[str]:
    """A shard's first process has its name; the others have their rank after it."""
    return [
        f"{role}-{index}" + (f".{rank}" if rank else "")
        for index in range(cluster.shards_of(role))
        for rank in range(cluster.tp_of(role))
    ]
