"""A cluster behind proxies: real processes, started and restarted by the launcher's supervisor."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import psutil

from sps2.cli import ports
from sps2.cli.commands import Command, commands
from sps2.cli.local import running_cluster
from sps2.cli.runs import RunFolder
from sps2.cli.supervise import Supervisor
from sps2.common import config
from sps2.common.client import AsyncClient
from sps2.common.config import Cluster
from sps2.common.errors import ServiceError
from sps2.common.messages import ClusterStatus, Role

from ..checkpoints import write_checkpoint
from .proxy import Proxy

WRAPPER = Path(__file__).with_name("behind_proxy.py")
GRACE_S = 30.0
SPANS = {"prefill_span_tokens": 16, "decode_span_tokens": 64}
"""So that tiny prompts are shared by prefill shards, and their KV by decode shards."""
USUAL: dict[str, Any] = {
    "dtype": "float32",
    "threads": 1,
    "transport": "tcp",
    "scheduler": SPANS,
    "sharing": {"gflops": 1.0, "link_latency_s": 0.0},
}
FIXED_PORTS = 6
"""Ports of a cluster before those of its shards."""


class ProxiedCluster:
    """The processes of a cluster, and the proxies before them.

    Args:
        folder: for all that it writes.
    """

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.cluster = cluster
        self.folder = RunFolder(cluster.name, folder)
        self.disk_pause = folder / "disk-pause"
        self.bus: dict[str, Proxy] = {}
        """Before the bus of each service."""
        self.plane: dict[str, Proxy] = {}
        """Before the data plane of each shard."""
        for name, port in {
            "gateway": cluster.gateway.bus_port,
            "scheduler": cluster.scheduler.bus_port,
            "kvdir": cluster.kvdir.bus_port,
        }.items():
            self.bus[name] = Proxy(name, port)
        for role in get_args(Role):
            for index in range(cluster.shards_of(role)):
                bus, plane = cluster.shard_ports_of(role, index, 0)
                self.bus[f"{role}-{index}"] = Proxy(f"{role}-{index}", bus)
                self.plane[f"{role}-{index}"] = Proxy(f"{role}-{index}", plane, frames=True)

    @property
    def services(self) -> list[str]:
        return list(self.bus)

    def pid(self, service: str) -> int:
        """The process of a service; 0 while there is none."""
        state = self.folder.state()
        return state.services[service].pid if state and service in state.services else 0

    def client(self) -> AsyncClient:
        """A client of the bus; its calls wait for a gateway that is away."""
        return AsyncClient(self.cluster.gateway_address, connect_s=60.0)

    async def status(self) -> ClusterStatus:
        async with self.client() as client, asyncio.timeout(30.0):
            return await client.status()

    async def ready(self) -> ClusterStatus:
        """The status once all services and shards are there."""
        while True:
            with suppress(ServiceError, TimeoutError):
                status = await self.status()
                if status.ready and not status.missing:
                    return status
            await asyncio.sleep(0.05)

    def resume(self) -> None:
        """End all faults that last."""
        for proxy in (*self.bus.values(), *self.plane.values()):
            proxy.resume()
        self.disk_pause.unlink(missing_ok=True)

    def tail(self, lines: int) -> str:
        """The last lines of all logs, of those that warn."""
        parts = []
        for service in ("supervisor", *self.services):
            told = [line for line in self.folder.tail(service, 400) if " INFO " not in line]
            parts += [f"--- {service}", *told[-lines:]]
        return "\n".join(parts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it while the block does; all processes have ended afterwards."""
        self.folder.prepare(self.cluster)
        stop = asyncio.Event()
        proxies = (*self.bus.values(), *self.plane.values())
        with self.folder.owned():
            for proxy in proxies:
                await proxy.start()
            supervisor = Supervisor(self.folder, self._wrapped(), GRACE_S)
            running = asyncio.create_task(supervisor.run(stop))
            try:
                yield
            finally:
                stop.set()
                await running
                for proxy in proxies:
                    await proxy.close()

    def _wrapped(self) -> Mapping[str, Command]:
        wrapped = {}
        for name, command in commands(self.cluster, self.folder).items():
            python, _, module, *rest = command.argv
            service = module.rpartition(".")[2]
            wrapped[name] = replace(
                command,
                argv=(python, str(WRAPPER), service, *rest),
                environment={
                    **command.environment,
                    "SPS2_CHAOS_DISK": str(self.disk_pause),
                    "PYTHONSAFEPATH": "1",
                },
            )
        return wrapped


SHAPES: dict[str, dict[str, Any]] = {
    "apart": {"prefill": 2, "decode": 3},
    "mixed": {"mixed": 3},
    "chunks": {
        "prefill": 2,
        "decode": 3,
        "scheduler": SPANS | {"chunk_tokens": 64},
    },
    "crowded": {
        "prefill": 2,
        "decode": 2,
        "kv": {"page_tokens": 16, "pool_tokens": 576, "growth_tokens": 16},
    },
    "forgetful": {"prefill": 2, "decode": 3, "kv": {"page_tokens": 16, "prefix_cache": False}},
    "ucx": {"prefill": 2, "decode": 3, "transport": "ucx"},
}
"""Kinds of clusters: `crowded` preempts answers, `forgetful` caches nothing. Of links over UCX the
proxies see handshakes and receipts, and no frames."""


def described(folder: Path, model: Path, shape: str = "apart") -> Cluster:
    """The configuration of a cluster for chaos: small pages, fixed ports, pages on disk."""
    port = ports.free_base()
    usual = USUAL | {
        "kv": {"page_tokens": 16, "pool_tokens": 2048, "disk_folder": str(folder / "disk")},
        "name": f"chaos-{port}",
        "shard_port": port + FIXED_PORTS,
    }
    return config.load(port=port, model=str(model), **(usual | SHAPES[shape]))


@contextmanager
def tiny(*, pool_tokens: int = 8192, **flags: Any) -> Iterator[Cluster]:
    """A cluster of a tiny random model, started as `spsctl up` does, while the block runs."""
    with tempfile.TemporaryDirectory(prefix="tiny") as named:
        os.environ["SPS2_HOME"] = named
        write_checkpoint("smollm2", model := Path(named) / "checkpoint")
        port = ports.free_base()
        with running_cluster(
            name=f"tiny-{port}",
            port=port,
            model=str(copied(model, Path(named))),
            kv={"page_tokens": 16, "pool_tokens": pool_tokens},
            **(USUAL | flags),
        ):
            yield config.load(port=port, gateway=flags.get("gateway", {}))


def left_behind(before: set[Path]) -> list[str]:
    """Processes and files that a cluster has left: children, shared memory, temporary files."""
    left = [f"process {each.pid} {each.cmdline()}" for each in psutil.Process().children(True)]
    return left + [str(path) for path in sorted(temporary() - before)]


def temporary() -> set[Path]:
    """What is in shared memory and among this user's temporary files that a service could make."""
    found = set()
    for folder in (Path("/dev/shm"), Path("/tmp")):
        if folder.is_dir():
            found |= {each for each in folder.iterdir() if each.name.startswith(("sps2", "torch_"))}
    return found


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open; 0 if it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def copied(model: Path, folder: Path) -> Path:
    """A copy of a checkpoint, since clusters write beside it."""
    return Path(shutil.copytree(model, folder / "model"))
