"""Launches a cluster: starts its supervisor, and watches its services until all are ready."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec

from sps2.cli import ports, remote
from sps2.cli.hosts import Hosts
from sps2.cli.runs import RunFolder
from sps2.cli.services import service_names
from sps2.cli.supervisor_process import SupervisorProcess
from sps2.common.bus.peer import Peer
from sps2.common.config import Cluster
from sps2.common.errors import Invalid, Refused, ServiceError
from sps2.common.messages import ClusterStatus, Describe, ShowCluster

POLL_S = 0.1
SAID = re.compile(r"\d{4}-\d\d-\d\d [\d:.]+ [A-Z]+ +\S+ [\w.]+: (.*)")
"""A line of a service's log; the group is the message after time, level and names."""
SERVER = "to serve on this machine: pip install 'sps2[server]'"


class ServiceDied(ServiceError):
    """A service ended before the cluster was ready. `lines` are the last lines of its log."""

    def __init__(self, service: str, how: str, lines: list[str]) -> None:
        super().__init__(f"{service} {how} while the cluster was starting")
        self.service = service
        self.lines = lines


@dataclass
class Started:
    """The progress of one service. Times are seconds since the launch."""

    host: str = ""
    """The host's name; empty for this machine."""
    up_after_s: float | None = None
    state: str = "starting"
    pid: int = 0
    rss_bytes: int = 0
    note: str = ""
    """The last message of its log, until it is up."""


@dataclass
class Progress:
    """The progress of a cluster's launch."""

    services: dict[str, Started] = field(default_factory=dict)
    ready_after_s: float | None = None
    waiting_for: str = ""


class Launch:
    """A cluster that this process brought up.

    Args:
        detach: let the cluster outlive this process; else it ends with this process in any case.
        hosts: of its services; None for this machine. `cluster` must have their addresses.
    """

    def __init__(self, cluster: Cluster, detach: bool = False, hosts: Hosts | None = None) -> None:
        self.cluster = cluster
        self.hosts = hosts
        self.warnings: list[str] = []
        """Warnings about the hosts, known after `start`."""
        self.folder = RunFolder(cluster.name)
        self._detach = detach
        self._since_s = 0.0
        self._supervisor = SupervisorProcess(self.folder)
        places = hosts.places(cluster) if hosts else {}
        self.progress = Progress(
            {name: Started(places[name].name if places else "") for name in service_names(cluster)}
        )

    def start(self) -> None:
        """Start the supervisor.

        Raises:
            Invalid: the cluster is up, a port is in use, or a host cannot run its services.
        """
        if self.folder.is_up():
            raise Invalid(
                f"cluster '{self.cluster.name}' is already up at {self.folder.cluster().http_url}; "
                f"stop it with `spsctl down --name {self.cluster.name}`"
            )
        if self.hosts is None:
            if find_spec("torch") is None:
                raise Invalid(f"torch is not installed here; {SERVER}")
            ports.require_free(self.cluster)
        else:
            self.warnings = remote.check(self.cluster, self.hosts)
        self.folder.prepare(self.cluster, self.hosts)
        self._since_s = time.monotonic()
        self._supervisor.start(self._detach)

    async def until_ready(
        self, timeout_s: float, on_change: Callable[[Progress], None] = lambda _: None
    ) -> ClusterStatus:
        """Watch the services until all are ready; `on_change` is called at every step.

        Raises:
            ServiceDied: a service or the supervisor ended.
            Refused: it took longer than `timeout_s`.
        """
        cluster = self.cluster
        doors = {
            **dict(zip(cluster.gateway_names(), cluster.gateway_addresses, strict=True)),
            "scheduler": cluster.scheduler_address,
            "kvdir": cluster.kvdir_address,
        } | ({"joining": cluster.joining_address} if cluster.joining.first_port else {})
        peers = {name: Peer(address, cluster.bus, name) for name, address in doors.items()}
        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
                guard = group.create_task(self._guard(on_change))
                for name, peer in peers.items():
                    group.create_task(self._answering(name, peer))
                status = await self._served(peers["gateway"])
                guard.cancel()
            on_change(self.progress)
        except TimeoutError:
            reason = self.progress.waiting_for or "a service does not answer"
            raise Refused(f"not ready after {timeout_s:.0f} s: {reason}") from None
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            for peer in peers.values():
                await peer.close()
        return status

    @property
    def is_up(self) -> bool:
        """Whether the supervisor is running."""
        return self._supervisor.is_up

    def restarts(self) -> Iterator[str]:
        """Which services died since the last call, and how, in words."""
        return self._supervisor.restarts()

    def stop(self) -> None:
        """End all processes of the cluster; returns when they have ended."""
        self._supervisor.stop()

    async def _guard(self, on_change: Callable[[Progress], None]) -> None:
        while True:
            on_change(self.progress)
            if not self.is_up:
                lines = self.folder.tail("supervisor", 5)
                raise ServiceDied("supervisor", "ended", lines)
            state = self.folder.state()
            for name, child in state.services.items() if state else ():
                started = self.progress.services[name]
                if child.exits:
                    where = f" on host {started.host!r}" if started.host else ""
                    lines = self.folder.tail(name, 20)
                    raise ServiceDied(name + where, child.last_exit, lines)
                if not started.host:
                    started.pid = child.pid
                started.note = self._note_of(name, started)
            await asyncio.sleep(POLL_S)

    def _note_of(self, name: str, started: Started) -> str:
        if started.up_after_s is not None:
            return ""
        said = [match[1] for line in self.folder.tail(name, 5) if (match := SAID.match(line))]
        return said[-1] if said else "loading libraries"

    async def _answering(self, name: str, peer: Peer) -> None:
        started = self.progress.services[name]
        while started.up_after_s is None:
            try:
                info = await peer.call(Describe(), deadline_s=2.0)
                self._note(name, info.state, info.rss_bytes)
            except ServiceError:
                pass
            await asyncio.sleep(POLL_S)

    async def _served(self, gateway: Peer) -> ClusterStatus:
        while True:
            try:
                status = await gateway.call(ShowCluster(), deadline_s=5.0)
            except ServiceError:
                await asyncio.sleep(POLL_S)
                continue
            self.progress.waiting_for = status.waiting_for or status.missing
            for service in status.services:
                self._note(service.service, service.state, service.rss_bytes)
            if (
                status.ready
                and not status.missing
                and all(each.state == "ready" for each in self.progress.services.values())
            ):
                self.progress.ready_after_s = time.monotonic() - self._since_s
                return status
            await asyncio.sleep(POLL_S)

    def _note(self, name: str, state: str, rss_bytes: int) -> None:
        started = self.progress.services.setdefault(name, Started())
        started.state = state
        started.rss_bytes = rss_bytes or started.rss_bytes
        if state in ("ready", "waiting") and started.up_after_s is None:
            started.up_after_s = time.monotonic() - self._since_s
