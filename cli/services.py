"""The processes of a cluster, by their names in logs and status."""

import itertools
from collections.abc import Iterable
from pathlib import Path

from sps2.common.bus.telemetry import role_of, shard_of
from sps2.common.config import Cluster


def service_names(cluster: Cluster) -> list[str]:
    """The names of all processes of a cluster."""
    joining = ["joining"] if cluster.joining.first_port else []
    return [*cluster.gateway_names(), "scheduler", "kvdir", *joining, *cluster.shard_names()]


def units(services: Iterable[str]) -> list[list[str]]:
    """Groups of processes that are restarted together: those of one shard; others are single."""
    return [list(names) for _, names in itertools.groupby(services, leader_of)]


def leader_of(service: str) -> str:
    """The first of the processes that are restarted together with one."""
    return service if role_of(service) == "gateway" else shard_of(service)


def start_of(service: str, config: Path, here: Iterable[str] = ()) -> list[str]:
    """The interpreter's arguments that start a service.

    Args:
        here: the shard processes on its machine, if the cluster has several machines.
    """
    module, index = role_of(service), shard_of(service).partition("-")[2]
    rank = service.partition(".")[2]
    argv = ["-m", f"sps2.services.{module}", "--config", str(config)]
    argv += ["--index", index] if index else []
    argv += ["--rank", rank] if rank else []
    return argv + (["--here", ",".join(here)] if index and here else [])


def environment(service: str, threads: int) -> dict[str, str]:
    """Environment variables of a service; `threads` is for one process of a shard."""
    return {
        "OMP_NUM_THREADS": str(threads if "-" in service else 1),
        # threads that spin while they wait would keep cores from the other shards
        "OMP_WAIT_POLICY": "passive",
    }
