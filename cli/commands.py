"""The commands that start a cluster's services: here, or on their hosts through ssh."""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import msgspec

from sps2.cli.hosts import Host, Hosts
from sps2.cli.node import Order
from sps2.cli.runs import RunFolder
from sps2.cli.services import environment, service_names, start_of
from sps2.common import keys, places
from sps2.common.bus.telemetry import role_of
from sps2.common.config import Cluster
from sps2.common.messages import Role

SSH_OPTIONS = (
    *("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=8"),  # survives a cut of a minute
)
LOGIN_S = 0.1
"""Pause between two logins on one host: sshd refuses some of many at once."""


@dataclass(frozen=True)
class Command:
    """How to start one service."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    order: bytes = b""
    """Sent to standard input, whose end ends the service; empty: it has no standard input."""
    delay_s: float = 0.0
    """Pause before its first start."""


def commands(cluster: Cluster, folder: RunFolder) -> dict[str, Command]:
    """The commands of all services of a cluster, by name."""
    hosts, joined = folder.hosts(), folder.joined()
    if hosts is not None:
        return _on_hosts(cluster, hosts)
    names = service_names(cluster) if joined is None else joined.shards
    here = () if joined is None else joined.shards
    bind = () if joined is None else ("--host", joined.host)
    return {
        name: Command(
            (sys.executable, *start_of(name, folder.config, here), *bind),
            environment(name, cluster.shard_threads) | _chosen() | places.inherited(),
        )
        for name in names
    }


def reach(hosts: Hosts, host: Host, *options: str) -> tuple[str, ...]:
    """The command that runs a node on a host."""
    remote = shlex.join([host.python or hosts.python, "-m", "sps2.cli.node", *options])
    return (*shlex.split(hosts.ssh), *SSH_OPTIONS, host.name, remote)


def order(cluster: Cluster, hosts: Hosts, host: Host, services: list[str]) -> Order:
    """The order to a host to run services."""
    return Order(
        version("sps2"),
        cluster,
        tuple(services),
        host.address,
        host.bind,
        host.home or hosts.home,
        _chosen() | host.environment,
        max(1, *(host.shards_of(role) * cluster.tp_of(role) for role in get_args(Role))),
        hosts.shards_at(host, cluster),
        _key_files(cluster, services),
    )


def _on_hosts(cluster: Cluster, hosts: Hosts) -> dict[str, Command]:
    logins = Counter[str]()
    made = {}
    for name, host in hosts.places(cluster).items():
        line = msgspec.json.encode(order(cluster, hosts, host, [name])) + b"\n"
        made[name] = Command(reach(hosts, host), {}, line, LOGIN_S * logins[host.name])
        logins[host.name] += 1
    return made


def _key_files(cluster: Cluster, services: list[str]) -> dict[str, str]:
    """The key files that services need: only gateway and scheduler need the clients."""
    if not cluster.bus.keys:
        return {}
    names = [keys.CLUSTER]
    roles = {role_of(service) for service in services}
    names += [keys.CLIENTS] if {"gateway", "scheduler"} & roles else []
    names += [keys.API_KEYS] if "gateway" in roles else []
    files = {name: keys.beside(cluster.bus, name) for name in names}
    if (named := Path(cluster.bus.keys)).is_file():
        files[keys.CLUSTER] = named
    return {name: keys.read_private(path).decode() for name, path in files.items() if path.exists()}


def _chosen() -> dict[str, str]:
    """The user's environment variables that services inherit."""
    name = "OMP_WAIT_POLICY"
    return {name: os.environ[name]} if name in os.environ else {}
