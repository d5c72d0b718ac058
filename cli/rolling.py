"""Restarts processes of a running cluster, each when the one before is back."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from sps2.cli.node import GRACE_S
from sps2.cli.runs import Child, RunFolder
from sps2.cli.services import leader_of, units
from sps2.cli.supervisor_process import send_signal
from sps2.common.bus.gateways import GATEWAY, Gateways
from sps2.common.bus.telemetry import role_of
from sps2.common.errors import Invalid, Refused, ServiceError
from sps2.common.messages import ClusterStatus, Greet, ShowCluster
from sps2.common.messages.schema import schema_hash
from sps2.common.words import counted, listed
from sps2.services.compatibility import VERSION
from sps2.services.draining import longest_s

POLL_S = 0.1
ASK_S = 5.0
HELD = {
    "batches_running": "running batch job",
    "files_kept": "file",
    "responses_stored": "stored response",
}
"""What a gateway alone has of its clients, by its counters."""
FIRST = ("kvdir", "scheduler", "joining")


def restarted_together(running: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The processes to restart, in this order: of several processes of a shard, the first.

    Args:
        running: all that the supervisor runs.
        wanted: none means all, but a gateway that is the only one.

    Raises:
        Invalid: one that is wanted is not there.
    """
    leaders = [names[0] for names in units(running)]
    if odd := [name for name in wanted if name not in running]:
        raise Invalid(f"{odd[0]} does not run here; these do: {', '.join(running) or 'none'}")
    if wanted:
        return list(dict.fromkeys(map(leader_of, wanted)))
    gateways = [name for name in leaders if role_of(name) == GATEWAY]
    shards = [name for name in leaders if name not in (*FIRST, *gateways)]
    first = [name for name in FIRST if name in leaders]
    return [*first, *shards, *(gateways if len(gateways) > 1 else [])]


class Rolling:
    """Restarts processes through the supervisor of a run folder, which starts what ends.

    Args:
        timeout_s: within which each must be back.
    """

    def __init__(self, folder: RunFolder, timeout_s: float) -> None:
        self._folder = folder
        self._cluster = folder.cluster()
        self._timeout_s = timeout_s
        self._gateway = Gateways(self._cluster.gateway_addresses, self._cluster.bus)
        self._before = ClusterStatus("", "", False, "", (), (), (), (), 0)
        """The status before the last restart."""

    @asynccontextmanager
    async def watching(self, are_named: bool = False) -> AsyncIterator[None]:
        """Be able to restart within the block.

        Args:
            are_named: whether somebody chose what restarts, who may want it though something is
                missing, or because it is.

        Raises:
            Refused: something is missing already, or another restart is under way.
            Invalid: the version installed here does not fit what runs.
        """
        with self._folder.restarting():
            try:
                await self._gateway.call(Greet("spsctl", VERSION, schema_hash()), ASK_S)
                self._before = await self._gateway.call(ShowCluster(), ASK_S)
                away = [f"{each.service} is {each.state}" for each in self._before.services]
                away = [words for words in away if not words.endswith(" ready")]
                if not are_named and (away or not self._before.ready):
                    what = ", ".join(away) or f"it waits for {self._before.waiting_for}"
                    one = "`spsctl restart SERVICE` restarts one all the same"
                    raise Refused(f"the cluster is not whole: {what}; {one}")
                yield
            finally:
                await self._gateway.close()

    def interrupts(self, service: str) -> str:
        """What stands still or is lost when a process restarts, in words; empty if nothing is."""
        duties = {shard.id: shard.duty or shard.role for shard in self._before.shards}
        working = [shard.id for shard in self._before.shards if shard.state in ("ready", "busy")]
        others = {duties[shard] for shard in working if shard != service}
        if role_of(service) == GATEWAY:
            gateways = [name for name in self._children() if role_of(name) == GATEWAY]
            alone = "the only gateway restarts: its clients are cut off"
            held = self.held(service)
            lost = [alone] * (len(gateways) < 2) + [f"{service} loses {held}"] * bool(held)
            return "; ".join(lost)
        for duty, does in (("prefill", "prefills"), ("decode", "decodes")):
            if duties.get(service) in (duty, "mixed") and not others & {duty, "mixed"}:
                return f"{service} is the only shard that {does}: requests wait until it is back"
        return ""

    def held(self, service: str) -> str:
        """What only this process has of its clients and would lose, in words; empty if nothing."""
        counters = {each.service: each.counters for each in self._before.services}.get(service, {})
        counts = {what: int(counters.get(name, 0)) for name, what in HELD.items()}
        return listed([counted(count, what) for what, count in counts.items() if count], "and")

    async def restart(self, service: str) -> float:
        """End a process, and wait until the cluster has it again; returns the seconds it took.

        Raises:
            Refused: it was not back in time, or ended again.
        """
        since_s = time.monotonic()
        pid = {each.service: each.pid for each in self._before.services}.get(service, 0)
        exits = await self._end(service)
        while not self._is_back(await self._status(), service, pid):
            child = self._children()[service]
            if child.exits > exits:
                raise Refused(f"{service} {child.last_exit} again; see `spsctl logs {service}`")
            if time.monotonic() - since_s > self._timeout_s:
                late = f"{service} is not back after {self._timeout_s:g} s"
                raise Refused(f"{late}; see `spsctl logs {service}`")
            await asyncio.sleep(POLL_S)
        return time.monotonic() - since_s

    async def _end(self, service: str) -> int:
        """End a process, by force if it takes too long; returns how often it has ended by then.

        Nothing is to do if it has ended by itself, and the supervisor is about to start the next.

        Raises:
            Refused: it does not end even so, within the time for its return.
        """
        child = self._children()[service]
        if not child.pid:
            return child.exits
        is_gateway = role_of(service) == GATEWAY
        drain_s = self._cluster.gateway.drain_s if is_gateway else longest_s(self._cluster)
        until_s = time.monotonic() + drain_s + GRACE_S
        send_signal(child.pid, signal.SIGTERM)
        while self._children()[service].exits == child.exits:
            if time.monotonic() > until_s + self._timeout_s:
                raise Refused(f"{service} (pid {child.pid}) does not end, even by SIGKILL")
            if time.monotonic() > until_s:
                send_signal(child.pid, signal.SIGKILL)
            await asyncio.sleep(POLL_S)
        return child.exits + 1

    def _children(self) -> dict[str, Child]:
        """What the supervisor runs. Raises Refused if it runs no more."""
        state = self._folder.state()
        if state is None:
            raise Refused(f"{self._folder.name} was stopped meanwhile")
        return state.services

    async def _status(self) -> ClusterStatus | None:
        with suppress(ServiceError):
            return await self._gateway.call(ShowCluster(), ASK_S)
        return None

    def _is_back(self, status: ClusterStatus | None, service: str, pid: int) -> bool:
        """Whether all are there that were, the restarted one as a process other than `pid`."""
        if status is None or status.ready < self._before.ready:
            return False
        ready = _ready(status)
        if not {*_ready(self._before), service} <= ready.keys() or ready[service] == pid:
            return False
        self._before = status
        return True


def _ready(status: ClusterStatus) -> dict[str, int]:
    """The services that are ready, with their process ids."""
    return {each.service: each.pid for each in status.services if each.state == "ready"}
