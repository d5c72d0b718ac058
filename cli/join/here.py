"""The shards of a joined cluster on this machine, from their start to their end."""

import asyncio
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar, get_args

from msgspec.structs import replace

from sps2.cli.launch import SERVER, Progress, ServiceDied, Started
from sps2.cli.runs import Joined, RunFolder
from sps2.cli.supervisor_process import SupervisorProcess
from sps2.common import config, keys, machine
from sps2.common.bus.gateways import Gateways
from sps2.common.bus.peer import Peer
from sps2.common.config import Cluster, DeviceName, Joining
from sps2.common.errors import Invalid, Refused, ServiceError
from sps2.common.messages import (
    Admission,
    LeaveCluster,
    Request,
    Role,
    ShowCluster,
)
from sps2.common.models.file_lock import locked
from sps2.services.draining import retire

R = TypeVar("R")

KEYS = "keys"
"""The folder of the cluster's key, in a run folder."""
POLL_S = 0.2
ASK_S = 5.0
DRAIN_S = 60.0
"""How long a leaving machine waits for what its shards still do; then others go on with it."""


@contextmanager
def claimed(name: str) -> Iterator[RunFolder]:
    """A run folder for a cluster of this name, which is this process's alone within the block.

    It is numbered where others of the name are in use.
    """
    number = 1
    while True:
        folder = RunFolder(name if number == 1 else f"{name}-{number}")
        folder.path.mkdir(parents=True, exist_ok=True)
        with (folder.path / "join.lock").open("ab") as lock:
            if locked(lock) and not folder.is_up():
                yield folder
                return
        number += 1


def machine_id(folder: RunFolder) -> str:
    """The id by which a cluster knows a run folder of this machine again."""
    path = folder.path / "machine"
    with suppress(FileNotFoundError):
        if len(found := path.read_text(encoding="utf-8").strip()) == 32:
            return found
    folder.path.mkdir(parents=True, exist_ok=True)
    path.write_text(made := secrets.token_hex(16), encoding="utf-8")
    return made


def received(folder: RunFolder, admission: Admission) -> Cluster:
    """The cluster's configuration, with its key, which is kept in the run folder."""
    path = folder.path / KEYS
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys.write_private(path / keys.CLUSTER, admission.key)
    file = folder.path / "received.toml"
    file.write_text(admission.config, encoding="utf-8")
    return config.load(file, keys=str(path))


def forget(folder: RunFolder) -> None:
    """Remove the cluster's key."""
    shutil.rmtree(folder.path / KEYS, ignore_errors=True)


def configured(
    cluster: Cluster,
    name: str,
    model: Path,
    shards: tuple[str, ...],
    device: DeviceName | None,
    threads: int | None,
) -> Cluster:
    """The cluster's configuration, for the shards that it gave to this machine."""
    numbers: dict[Role, list[int]] = {role: [] for role in get_args(Role)}
    for shard in shards:
        role, _, number = shard.rpartition("-")
        numbers[role].append(int(number))  # type: ignore[index]
    counts = {
        role: max([cluster.shards_of(role), *(number + 1 for number in numbers[role])])
        for role in numbers
    }
    processes = max(len(numbers[role]) * cluster.tp_of(role) for role in numbers)
    return replace(
        cluster,
        name=name,
        model=str(model),
        device=device or cluster.device,
        threads=threads or max(1, machine.cores() // processes),
        joining=Joining(),
        **counts,
    )


class Here:
    """Shards on this machine, which a supervisor of this process keeps alive.

    Args:
        address: of this machine, where the others reach it.
    """

    def __init__(
        self, cluster: Cluster, folder: RunFolder, shards: tuple[str, ...], address: str
    ) -> None:
        self.cluster = cluster
        self.folder = folder
        self.shards = shards
        self._address = address
        self._supervisor = SupervisorProcess(folder)
        self._since_s = 0.0
        self._processes = tuple(_processes(cluster, shards))
        self.progress = Progress({name: Started() for name in self._processes})

    def start(self) -> None:
        """Start the shards. Raises Invalid if what they need is not installed."""
        if find_spec("torch") is None:
            raise Invalid(f"torch is not installed here; {SERVER}")
        self.folder.prepare(self.cluster, joined=Joined(self._processes, self._address))
        self._since_s = time.monotonic()
        self._supervisor.start()

    @property
    def is_up(self) -> bool:
        return self._supervisor.is_up

    def restarts(self) -> Iterator[str]:
        """Which processes died since the last call, and how, in words."""
        return self._supervisor.restarts()

    async def until_in(
        self, timeout_s: float, on_change: Callable[[Progress], None] = lambda _: None
    ) -> None:
        """Wait until the cluster uses the shards; `on_change` is called at every step.

        Raises:
            ServiceDied: a shard or the supervisor ended.
            Refused: it took longer than `timeout_s`.
        """
        end_s = time.monotonic() + timeout_s
        gateway = self._gateway()
        try:
            while not await self._are_in(gateway):
                on_change(self.progress)
                self._require_alive()
                if time.monotonic() > end_s:
                    why = self.progress.waiting_for or "the gateway does not answer"
                    raise Refused(f"not in the cluster after {timeout_s:.0f} s: {why}")
                await asyncio.sleep(POLL_S)
        finally:
            await gateway.close()
        self.progress.ready_after_s = time.monotonic() - self._since_s
        on_change(self.progress)

    async def problem(self) -> str:
        """What keeps the cluster from using all of its shards, in words; empty if nothing does."""
        gateway = self._gateway()
        try:
            status = await gateway.call(ShowCluster(), ASK_S)
        except ServiceError as error:
            return f"the cluster does not answer, and is waited for ({error})"
        finally:
            await gateway.close()
        return status.waiting_for or status.missing

    async def retire(self) -> None:
        """Wait until the shards have no work left, and get no more; see `DRAIN_S`."""
        await asyncio.gather(*(retire(shard, self.cluster, DRAIN_S) for shard in self.shards))

    def stop(self) -> None:
        """End the shards; returns when they have ended."""
        self._supervisor.stop()

    def _gateway(self) -> Gateways:
        return Gateways(self.cluster.gateway_addresses, self.cluster.bus, connect_s=ASK_S)

    async def _are_in(self, gateway: Gateways) -> bool:
        try:
            status = await gateway.call(ShowCluster(), ASK_S)
        except ServiceError:
            return False
        self.progress.waiting_for = status.missing or status.waiting_for
        for service in status.services:
            if (started := self.progress.services.get(service.service)) is not None:
                started.state, started.rss_bytes = service.state, service.rss_bytes
                if service.state == "ready" and started.up_after_s is None:
                    started.up_after_s = time.monotonic() - self._since_s
        states = {shard.id: shard.state for shard in status.shards}
        return all(states.get(shard) in ("ready", "busy") for shard in self.shards) and all(
            started.up_after_s is not None for started in self.progress.services.values()
        )

    def _require_alive(self) -> None:
        if not self.is_up:
            raise ServiceDied("supervisor", "ended", self.folder.tail("supervisor", 5))
        state = self.folder.state()
        for name, child in state.services.items() if state else ():
            if child.exits:
                raise ServiceDied(name, child.last_exit, self.folder.tail(name, 20))
            self.progress.services[name].pid = child.pid


async def ask(cluster: Cluster, address: str, request: Request[R], deadline_s: float = ASK_S) -> R:
    """One call to a service of the cluster. Raises as `Peer.call`."""
    peer = Peer(address, cluster.bus, connect_s=ASK_S)
    try:
        return await peer.call(request, deadline_s)
    finally:
        await peer.close()


async def leave(cluster: Cluster, machine: str) -> None:
    """Tell the cluster that the ids of this machine's shards are free."""
    with suppress(ServiceError):
        await ask(cluster, cluster.joining_address, LeaveCluster(machine))


def _processes(cluster: Cluster, shards: tuple[str, ...]) -> Iterator[str]:
    """The names of the shards' processes."""
    for name in cluster.shard_names():
        if name.partition(".")[0] in shards:
            yield name
