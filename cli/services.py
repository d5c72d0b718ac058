"""The processes of a cluster, by the names that they have in logs and status."""

import itertools
from collections.abc import Iterable
from pathlib import Path

from sps2.common.config import Cluster


def service_names(cluster: Cluster) -> list[str]:
    """Every process of a cluster."""
    return ["gateway", "scheduler", "kvdir", *cluster.shard_names()]


def units(services: Iterable[str]) -> list[list[str]]:
    """Processes that live and die together: those of one shard; other services are alone."""
    grouped = itertools.groupby(services, lambda name: name.partition(".")[0])
    return [list(names) for _, names in grouped]


def start_of(service: str, config: Path, here: Iterable[str] = ()) -> list[str]:
    """What follows the interpreter to start a service.

    Args:
        here: the processes of shards on its machine, where these are not all of the cluster.
    """
    module, _, shard = service.partition("-")
    index, _, rank = shard.partition(".")
    argv = ["-m", f"sps2.services.{module}", "--config", str(config)]
    argv += ["--index", index] if index else []
    argv += ["--rank", rank] if rank else []
    return argv + (["--here", ",".join(here)] if index and here else [])


def environment(service: str, threads: int) -> dict[str, str]:
    """What a service needs in its environment; `threads` are those of one shard's process."""
    return {
        "OMP_NUM_THREADS": str(threads if "-" in service else 1),
        # threads that spin while they wait take the cores from the other shards
        "OMP_WAIT_POLICY": "passive",
    }
