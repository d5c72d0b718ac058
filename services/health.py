"""Probes whether one service works: `python -m sps2.services.health SERVICE [--ready]`.

`--drain SECONDS` waits until the cluster has no request in work, at most that long. Run it before
the gateway is stopped, since that ends every answer.

SERVICE is the service's name in `spsctl status`, for example gateway or prefill-0. For a shard,
`--host` says where it is, and the configuration must give it a port (`shard_port`). Exits with 0 if
the service answers on the bus and, with `--ready`, waits for nothing; with 1 if not; with 2 if its
address or configuration cannot be used, or `--drain` gets no answer.
"""

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

from sps2.common import config
from sps2.common.bus.addresses import address_of
from sps2.common.bus.peer import Peer
from sps2.common.bus.telemetry import role_of
from sps2.common.config import Cluster
from sps2.common.errors import Invalid, ServiceError
from sps2.common.messages import Describe, Info
from sps2.services.run import is_shard

DEADLINE_S = 8.0
SETTLE_S = 5.0
"""How long requests still come after an orchestrator has begun to stop the gateway."""
POLL_S = 1.0


def address(cluster: Cluster, service: str, host: str | None) -> str:
    """The bus address of a service.

    Raises:
        Invalid: the service does not exist, or the configuration does not give its port.
    """
    name, _, place = service.partition("-")
    if is_shard(name):
        index, _, rank = place.partition(".")
        if not index.isdecimal() or not (rank or "0").isdecimal():
            raise Invalid(f"{service!r} is no shard; try {name}-0")
        port, _ = cluster.shard_ports_of(name, int(index), int(rank or 0))
        if not port:
            raise Invalid(
                "its port is not known: the configuration has no shard_port, so shards take any "
                "that are free"
            )
        return f"tcp://{address_of(host or cluster.host)}:{port}"
    gateways = cluster.gateway_names()
    ports = {
        **{each: cluster.gateway_port_of(number) for number, each in enumerate(gateways)},
        "scheduler": cluster.scheduler.bus_port,
        "kvdir": cluster.kvdir.bus_port,
    }
    if cluster.joining.first_port:
        ports["joining"] = cluster.joining.first_port + 2
    if service not in ports:
        raise Invalid(f"there is no service {service!r}; there are {', '.join(ports)} and shards")
    return f"tcp://{address_of(host or cluster.host_of(role_of(service)))}:{ports[service]}"


async def drained(
    cluster: Cluster, seconds: float, settle_s: float = SETTLE_S, poll_s: float = POLL_S
) -> bool:
    """Wait until the scheduler has no request; False if it still has one after `seconds`.

    Args:
        settle_s: how long it must have had none, so that requests on their way are counted.

    Raises:
        ServiceError: the scheduler does not answer.
    """
    end_s = time.monotonic() + seconds
    peer = Peer(cluster.scheduler_address, cluster.bus, "scheduler")
    try:
        idle_since_s = None
        while True:
            counters = (await peer.call(Describe(), DEADLINE_S)).counters
            now_s = time.monotonic()
            if counters["requests_running"] or counters["requests_waiting"]:
                idle_since_s = None
            elif idle_since_s is None:
                idle_since_s = now_s
            if idle_since_s is not None and now_s - idle_since_s >= settle_s:
                return True
            if now_s >= end_s:
                return False
            await asyncio.sleep(min(poll_s, end_s - now_s))
    finally:
        await peer.close()


async def ask(cluster: Cluster, service: str, at: str) -> Info:
    """The service's description of itself. Raises ServiceError if it does not answer."""
    peer = Peer(at, cluster.bus, service)
    try:
        return await peer.call(Describe(), DEADLINE_S)
    finally:
        await peer.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sps2.services.health", description=__doc__)
    parser.add_argument("service")
    parser.add_argument("--config", type=Path, help="of the cluster; else $SPS2_CONFIG")
    parser.add_argument("--host", help="where it is, if not where the configuration says")
    parser.add_argument("--ready", action="store_true", help="it must not wait for anything")
    parser.add_argument(
        "--drain",
        type=float,
        metavar="SECONDS",
        help="wait until no request is in work, for SECONDS at most",
    )
    arguments = parser.parse_args()
    named = arguments.config or os.environ.get("SPS2_CONFIG")
    try:
        cluster = config.load(Path(named) if named else None)
        if arguments.drain is not None:
            idle = asyncio.run(drained(cluster, arguments.drain))
            print("no request is in work" if idle else "requests are still in work")
            return
        at = address(cluster, arguments.service, arguments.host)
    except ServiceError as error:
        print(f"{arguments.service} cannot be asked: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        info = asyncio.run(ask(cluster, arguments.service, at))
    except ServiceError as error:
        sys.exit(f"{arguments.service} is not well: {error}")
    if arguments.ready and info.state != "ready":
        sys.exit(f"{info.service} is {info.state}; it waits for {info.waiting_for or 'its start'}")
    print(f"{info.service} is {info.state}")


if __name__ == "__main__":
    main()
