"""One service process: arguments, log, signals, heartbeats, a graceful stop around `serve`."""

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard, get_args

import uvloop

from sps2.common import config, log, machine
from sps2.common.bus.addresses import address_of
from sps2.common.bus.telemetry import Publisher
from sps2.common.config import Cluster
from sps2.common.errors import ServiceError
from sps2.common.messages import Describe, Greet, Greeted, Info, Link, Role
from sps2.common.resident import Resident
from sps2.common.tracing import FORGETFUL, Recorder
from sps2.common.vital import vital
from sps2.services.compatibility import VERSION, greeted
from sps2.services.descriptors import allow_all
from sps2.services.neighbours import ALONE, Neighbours, neighbours

State = Literal["starting", "ready", "waiting"]
SWITCH_S = 0.0005
"""How long a computing thread may keep the event loops from running Python; Python's default of
5 ms is half of a layer of a short prompt."""


@dataclass
class About:
    """A service's description of itself on the bus; the service sets `missing` and `counters`."""

    service: str
    host: str = "127.0.0.1"
    """The address that the service binds."""
    ports: tuple[int, int] = (0, 0)
    """The ports that a shard process binds, for the bus and the data plane; 0 is any."""
    index: int = 0
    """The shard that this process belongs to."""
    rank: int = 0
    """Which process of the shard, the first leads; or which of several gateways."""
    neighbours: Neighbours = ALONE
    missing: Callable[[], str] = lambda: ""
    """What the service waits for, in words; empty when it can work."""
    counters: Callable[[], dict[str, float]] = dict
    links: Callable[[], tuple[Link, ...]] = tuple
    tokens: Callable[[], dict[str, int]] = dict
    """Tokens so far of each answer that the service generates, by request."""
    traces: Recorder = FORGETFUL
    started: bool = False

    def __post_init__(self) -> None:
        self._memory = Resident()
        self._since_s = time.monotonic()

    @property
    def state(self) -> State:
        if not self.started:
            return "starting"
        return "waiting" if self.missing() else "ready"

    def listen_at(self, port: int | None = None) -> str:
        """The bus address to bind; without a port, the one configured for a shard process."""
        return f"tcp://{self.host}:{self.ports[0] if port is None else port}"

    async def describe(self, request: Describe) -> Info:
        return Info(
            self.service,
            os.getpid(),
            VERSION,
            self.state,
            self.missing(),
            self.rss_bytes(),
            time.monotonic() - self._since_s,
            self.counters(),
            self.links(),
        )

    async def greet(self, request: Greet) -> Greeted:
        return greeted(self.service, request)

    def rss_bytes(self) -> int:
        """Resident memory of this process, in bytes."""
        return self._memory.nbytes()


@asynccontextmanager
async def sending_heartbeats(about: About, cluster: Cluster) -> AsyncIterator[Publisher]:
    """A telemetry publisher that carries the service's heartbeats while the context is open."""
    publisher = Publisher(cluster.publish_address, about.service, cluster.bus)

    async def heartbeats() -> None:
        while True:
            publisher.heartbeat(
                about.counters(), about.state, about.missing(), about.links(), about.tokens()
            )
            await asyncio.sleep(cluster.bus.heartbeat_s)

    task = vital(asyncio.create_task(heartbeats(), name="sending_heartbeats"))
    try:
        yield publisher
    finally:
        task.cancel()
        await asyncio.wait({task})
        publisher.close()


Serve = Callable[[Cluster, About, asyncio.Event], Awaitable[None]]


def run(name: str, serve: Serve) -> None:
    """Run `serve(cluster, about, stop)` until it returns; SIGTERM and SIGINT set `stop`.

    Exits with status 1 and one line on stderr when the service cannot run.
    """
    arguments = _arguments(name)
    service = name if arguments.index is None else f"{name}-{arguments.index}"
    if arguments.rank:
        service += f".{arguments.rank}"
    log.setup(service)
    if supervisor := os.environ.get("SPS2_SUPERVISOR_PID"):
        machine.end_with(int(supervisor))
    allow_all()
    sys.setswitchinterval(SWITCH_S)
    try:
        cluster = config.load(arguments.config)
        log.setup(service, cluster.log.level, cluster.log.format)
        host = arguments.host or (cluster.host if is_shard(name) else cluster.host_of(name))
        cluster.require_keys(host)
        traces = Recorder(service, cluster.tracing.kept)
        place = arguments.index or 0, arguments.rank
        ports = cluster.shard_ports_of(name, *place) if is_shard(name) else (0, 0)
        about = About(service, address_of(host), ports, *place, traces=traces)
        if is_shard(name):
            about.neighbours = neighbours(service, arguments.here or cluster.shard_names())
        uvloop.run(_until_stopped(cluster, about, serve))
    except (ServiceError, OSError) as error:
        logging.getLogger(__name__).error("%s cannot run: %s", service, error)
        sys.exit(1)


def _arguments(name: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m sps2.services.{name}")
    parser.set_defaults(index=None, rank=0, host=None)
    parser.add_argument("--config", type=Path, help="TOML configuration of the cluster")
    if is_shard(name):
        parser.add_argument("--index", type=int, default=0, help="which shard this is")
    if is_shard(name) or name == "gateway":
        of = "of several gateways" if name == "gateway" else "process of the shard"
        parser.add_argument("--rank", type=int, default=0, help=f"which {of}")
    if is_shard(name):
        parser.add_argument(
            "--here",
            type=lambda names: names.split(","),
            help="names of all processes of shards on this machine, such as prefill-0,decode-0, "
            "which share its cards and memory; absent, all of the cluster",
        )
        where = "where the others reach this shard; absent, the configuration's `host`"
    else:
        where = "such as 0.0.0.0; absent, where the configuration says that the others reach it"
    parser.add_argument("--host", help=f"address or name of this machine to bind, {where}")
    return parser.parse_args()


def is_shard(name: str) -> TypeGuard[Role]:
    """Whether a service of this name is a shard."""
    return name in get_args(Role)


async def _until_stopped(cluster: Cluster, about: About, serve: Serve) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(cluster, about, stop)
