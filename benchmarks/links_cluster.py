"""A cluster whose shards have a host each; gateway, scheduler and KV directory share one."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import httpx
import msgspec
import psutil
from links_network import Host, Unavailable

from sps2.cli.commands import Command, commands
from sps2.cli.runs import Child, RunFolder
from sps2.cli.services import service_names
from sps2.cli.supervise import Supervisor
from sps2.common.config import Cluster
from sps2.common.errors import ServiceError
from sps2.common.keys.keyring import Keyring

CONTROL = "control"
"""The host of whatever is not a shard."""
READY_S = 300.0
POLL_S = 0.2
GRACE_S = 30.0
"""For services to end by themselves, on cores that all of them share."""


class Died(ServiceError):
    """A service ended; the message has the last of its log."""


def problem_of(measuring: Coroutine[Any, Any, None]) -> str:
    """Run a measurement; returns why it ended early, and nothing if it did not."""
    try:
        asyncio.run(measuring)
    except Unavailable as error:
        return str(error)
    except (ServiceError, httpx.HTTPError, TimeoutError) as error:
        return str(error) or "the cluster was not ready in time"
    except asyncio.CancelledError:
        return "interrupted"
    return ""


def host_names(prefill: int, decode: int) -> list[str]:
    """The hosts of a cluster with these numbers of shards: each shard's is named after it."""
    services = service_names(Cluster(prefill=prefill, decode=decode))
    return [CONTROL, *(name for name in services if "-" in name)]


def placed(
    cluster: Cluster,
    folder: RunFolder,
    hosts: Mapping[str, Host],
    cgroups: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Command]:
    """The command of every service, on its host, and in its control group if it has one."""
    made = {}
    for name, command in commands(cluster, folder).items():
        host = hosts.get(name)
        argv = (*command.argv, "--host", host.address) if host else command.argv
        namespace = (host or hosts[CONTROL]).namespace
        argv = ("ip", "netns", "exec", namespace, *argv)
        if name in cgroups:
            argv = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', cgroups[name], *argv)
        made[name] = Command(argv, command.environment)
    return made


class Spread:
    """A cluster that is up. All of its processes end with the block of `spread`."""

    def __init__(self, folder: RunFolder, client: httpx.AsyncClient) -> None:
        self._folder = folder
        self._client = client

    async def ready(self) -> None:
        """Wait until the cluster serves. Raises Died, or TimeoutError."""
        async with asyncio.timeout(READY_S):
            while True:
                self.check()
                try:
                    if (await self._client.get("/ready")).is_success:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(POLL_S)

    async def post(self, path: str, body: object) -> httpx.Response:
        """Ask the gateway. Raises Died if a service has ended since the start."""
        answer = await self._client.post(path, json=body)
        self.check()
        return answer

    async def stream(self, path: str, body: object) -> AsyncIterator[bytes]:
        """Ask the gateway, and yield the data of each server-sent event but the last."""
        async with self._client.stream("POST", path, json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield line.removeprefix("data: ").encode()
        self.check()

    def cpu_s(self) -> float:
        """CPU time that its processes have had."""
        pids = [child.pid for child in self._services().values() if child.pid]
        times = [psutil.Process(pid).cpu_times() for pid in pids]
        return float(sum(each.user + each.system for each in times))

    def check(self) -> None:
        """Raises Died if a service has ended since the start."""
        for name, child in self._services().items():
            if child.exits:
                log = "\n".join(self._folder.tail(name, 20))
                raise Died(f"{name} {child.last_exit}; the last of its log:\n{log}")

    def _services(self) -> dict[str, Child]:
        state = self._folder.state()
        return state.services if state else {}


@asynccontextmanager
async def spread(
    cluster: Cluster, hosts: Mapping[str, Host], cgroups: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Spread]:
    """Start a cluster on its hosts, with keys. The caller must be on the network of `CONTROL`'s.

    Its run folder is a temporary one: nothing is left of it, and `spsctl` does not see it.
    """
    with TemporaryDirectory(prefix="sps2-links-") as home:
        ring = Keyring(Path(home) / "keys")
        ring.make(cluster.name)
        headers = {"authorization": f"Bearer {ring.add_api_key('bench')}"}
        bus = msgspec.structs.replace(cluster.bus, keys=str(ring.folder))
        cluster = msgspec.structs.replace(cluster, host=hosts[CONTROL].address, bus=bus)
        folder = RunFolder(cluster.name, Path(home))
        folder.prepare(cluster)
        stop = asyncio.Event()
        with folder.owned():
            supervisor = Supervisor(folder, placed(cluster, folder, hosts, cgroups), GRACE_S)
            running = asyncio.create_task(supervisor.run(stop))
            try:
                async with httpx.AsyncClient(
                    base_url=cluster.http_url, timeout=None, headers=headers
                ) as client:
                    yield Spread(folder, client)
            finally:
                stop.set()
                await running
