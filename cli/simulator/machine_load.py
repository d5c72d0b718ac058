"""The machine under a cluster: its cores, and what other programs use of them."""

from contextlib import suppress
from time import perf_counter

import psutil

from sps2.common import machine
from sps2.common.config import Cluster
from sps2.common.messages import ClusterStatus


def most_cores(cluster: Cluster, status: ClusterStatus) -> float:
    """How many shards can compute at once at most because they share one CPU; 0: they don't."""
    if cluster.device == "cuda" or len(_hosts(status)) > 1:
        return 0.0
    if not _is_here(status):
        return float(len(status.shards))
    return max(1.0, machine.cores() / cluster.shard_threads)


def machine_of(cluster: Cluster, status: ClusterStatus) -> str:
    """What shards compute on, for people."""
    hosts = _hosts(status)
    if len(hosts) > 1 or not _is_here(status):
        return f"{len(hosts)} hosts ({cluster.device})" if len(hosts) > 1 else min(hosts)
    if cluster.device == "cuda":
        return "the GPUs of this machine"
    return f"{machine.cpu_name()}, {machine.cores()} cores"


class Load:
    """Measures what others than a cluster use of this machine, from its making on."""

    def __init__(self, status: ClusterStatus) -> None:
        self._pids = [each.pid for each in status.services if each.pid] if _is_here(status) else []
        self._since_s = perf_counter()
        self._all_s, self._own_s = _all_s(), self._own()

    def others(self) -> float:
        """Their share of its cores; 0 if the cluster is elsewhere."""
        if not self._pids:
            return 0.0
        used_s = (_all_s() - self._all_s) - (self._own() - self._own_s)
        return max(0.0, used_s / (perf_counter() - self._since_s) / machine.cores())

    def _own(self) -> float:
        total_s = 0.0
        for process in (*self._pids, None):
            with suppress(psutil.Error):
                times = psutil.Process(process).cpu_times()
                total_s += float(times.user + times.system)
        return total_s


def _hosts(status: ClusterStatus) -> set[str]:
    return {shard.address.rpartition(":")[0] for shard in status.shards}


def _is_here(status: ClusterStatus) -> bool:
    """Whether all shards are on this machine, as far as their addresses say."""
    here = {"127.0.0.1", "localhost", "[::1]"}
    for addresses in psutil.net_if_addrs().values():
        here |= {each.address for each in addresses}
    return all(host.removeprefix("tcp://") in here for host in _hosts(status))


def _all_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)
