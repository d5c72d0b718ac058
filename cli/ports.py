"""The ports that a cluster binds on this machine: which are in use, by whom, and which are free."""

import errno
import os
import socket
from collections import Counter
from collections.abc import Collection
from itertools import chain
from typing import NamedTuple, get_args

import psutil

from sps2.cli import runs
from sps2.common.bus.addresses import address_of
from sps2.common.bus.telemetry import role_of
from sps2.common.config import Cluster
from sps2.common.errors import Invalid, ServiceError
from sps2.common.messages import Role

PORTS = 20
"""Fixed ports of a cluster of up to ten shards and five gateways; all others are any free ports."""
JOINING_PORTS, JOINING_OFFSET = 3, 13
"""The ports where machines join, and where they begin behind the HTTP port unless configured."""
APART = 101
"""Distance between the places where processes with consecutive ids begin to search."""


class Use(NamedTuple):
    """A port, the key of the configuration that names it, and the service that binds it."""

    key: str
    port: int
    service: str


def uses(cluster: Cluster) -> list[Use]:
    """All ports of a configuration."""
    return [
        Use("gateway.port", cluster.gateway.port, "gateway"),
        *(
            Use(
                "gateway.second_bus_port" if number else "gateway.bus_port",
                cluster.gateway_port_of(number),
                name,
            )
            for number, name in enumerate(cluster.gateway_names())
        ),
        Use("scheduler.bus_port", cluster.scheduler.bus_port, "scheduler"),
        Use("kvdir.bus_port", cluster.kvdir.bus_port, "kvdir"),
        Use("telemetry.publish_port", cluster.telemetry.publish_port, "scheduler"),
        Use("telemetry.subscribe_port", cluster.telemetry.subscribe_port, "scheduler"),
        *(
            Use("joining.first_port", cluster.joining.first_port + offset, "joining")
            for offset in range(JOINING_PORTS)
            if cluster.joining.first_port
        ),
        *(
            Use("meeting_port", cluster.meeting_port_of(role, index), f"{role}-{index}")
            for role in get_args(Role)
            if cluster.tp_of(role) > 1
            for index in range(cluster.shards_of(role))
        ),
        *(
            Use("shard_port", port, f"{role}-{index}")
            for role in get_args(Role)
            for index in range(cluster.shards_of(role))
            for rank in range(cluster.processes_of(role))
            for port in cluster.shard_ports_of(role, index, rank)
            if port
        ),
    ]


def require_free(cluster: Cluster, services: Collection[str] | None = None, host: str = "") -> None:
    """Check that all ports can be bound.

    Args:
        services: those that run here; None for all.
        host: the address that they bind; empty: the configuration's.

    Raises:
        Invalid: two keys name one port, a port is in use (the message says by whom) or cannot be
            bound, or an address is not IPv4.
    """
    counts = Counter(use.port for use in uses(cluster))
    for port, count in counts.items():
        if count > 1:
            keys = " and ".join(use.key for use in uses(cluster) if use.port == port)
            raise Invalid(f"port {port} is given twice: {keys}")
    for use in uses(cluster):
        if services is not None and use.service not in services:
            continue
        named = role_of(use.service)
        address = host or (cluster.host if "-" in use.service else cluster.host_of(named))
        address_of(address)
        problem = _problem(address, use.port)
        if problem == errno.EADDRINUSE:
            raise Invalid(
                f"port {use.port} ({use.key}) is taken by {holder(use.port)}; "
                f"choose others with --port, or this one with {use.key} in the configuration"
            )
        if problem == errno.EADDRNOTAVAIL:
            raise Invalid(f"{address} is not an address of this machine (--host)")
        if problem:
            raise Invalid(
                f"port {use.port} ({use.key}) cannot be bound: {errno.errorcode[problem]}"
            )


def is_own(address: str) -> bool:
    """Whether an address belongs to this machine."""
    return not _problem(address, 0)


def holder(port: int) -> str:
    """Who listens on a port, in words: a cluster, or another process."""
    for folder in runs.running():
        try:
            ports = [use.port for use in uses(folder.cluster())]
        except ServiceError:
            continue
        if port in ports:
            return f"cluster '{folder.name}', which is up (`spsctl down --name {folder.name}`)"
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        connections = []
    for each in connections:
        if each.pid and each.status == psutil.CONN_LISTEN and each.laddr.port == port:
            try:
                return f"process {each.pid} ({psutil.Process(each.pid).name()})"
            except psutil.NoSuchProcess:
                break
    return "another process"


def free_base(host: str = "127.0.0.1", skip: int = 0) -> int:
    """The first of `PORTS` consecutive free ports. Raises Invalid if there are none.

    Each process begins to search at another place, since another may be about to bind what it
    found.

    Args:
        skip: ranges to skip, for several clusters of one process that bind later.
    """
    bases = range(18000, 32000, PORTS)
    first = (os.getpid() * APART + skip) % len(bases)
    for base in chain(bases[first:], bases[:first]):
        if not any(_problem(host, base + offset) for offset in range(PORTS)):
            return base
    raise Invalid(f"no {PORTS} consecutive free ports between 18000 and 32000 on {host}")


def _problem(host: str, port: int) -> int:
    """The errno of binding the port; 0 if it can be bound."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return error.errno or errno.EADDRINUSE
    return 0
