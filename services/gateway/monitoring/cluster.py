"""The state of the whole cluster, from every service's answer; one that does not answer is lost."""

import asyncio
from importlib.metadata import version

from msgspec.structs import replace

from sps2.common.bus.peer import Peer
from sps2.common.config import Cluster
from sps2.common.errors import ServiceError
from sps2.common.messages import (
    ClusterStatus,
    Describe,
    FleetStatus,
    Info,
    Leases,
    Link,
    ListLeases,
    ServiceStatus,
    ShardStatus,
    ShowFleet,
)
from sps2.services.gateway.others.gateways import Others
from sps2.services.gateway.shards import Shards

DEADLINE_S = 2.0
"""Long enough for a busy process; a process that has ended is detected at once."""

Described = tuple[ServiceStatus, tuple[Link, ...]]


class Observer:
    """Queries all services at once.

    Args:
        config: where the gateway itself can be reached.
        others: the other gateways.
        joining: the service where machines join; None if the cluster has none.
        model: the id of the served model.
    """

    def __init__(
        self,
        config: Cluster,
        model: str,
        scheduler: Peer,
        directory: Peer,
        joining: Peer | None,
        shards: Shards,
        others: Others,
    ) -> None:
        self._config = config
        self._model = model
        self._scheduler = scheduler
        self._directory = directory
        self._shards = shards
        self._others = others
        self._named = {"scheduler": scheduler, "kvdir": directory}
        if joining is not None:
            self._named["joining"] = joining

    async def status(self, own: Info) -> ClusterStatus:
        """Query all services; those without an answer are lost. `own` describes the gateway."""
        async with asyncio.TaskGroup() as group:
            fleet_call = group.create_task(self._fleet())
            leases_call = group.create_task(self._leases())
            gateways = {each: group.create_task(self._gateway(each)) for each in self._others.peers}
            named = [group.create_task(_describe(name, peer)) for name, peer in self._named.items()]
            fleet, leases = await fleet_call, await leases_call
            named += [
                group.create_task(self._describe_shard(process, address))
                for shard in fleet.shards
                for process, address in _processes(shard)
            ]
        waiting_for = "" if fleet.serving else fleet.waiting_for
        if fleet.serving and own.waiting_for and not self._others:
            waiting_for = f"the gateway, which waits for {own.waiting_for}"
        number = self._others.number
        found = {each: status.result() for each, status in gateways.items()}
        found[number] = _status(own.service, self._config.gateway_addresses[number], own)
        services = [found[each] for each in sorted(found)]
        described = [each.result() for each in named]
        services += [status for status, _ in described]
        return ClusterStatus(
            model=self._model,
            quantize=self._config.quantize,
            version=version("sps2"),
            ready=not waiting_for,
            waiting_for=waiting_for,
            missing=fleet.waiting_for if fleet.serving else "",
            services=tuple(services),
            shards=fleet.shards,
            requests=fleet.requests,
            leases=leases.leases,
            leaked_pages=leases.leaked_pages,
            links=tuple(link for _, links in described for link in links),
            rates=fleet.rates,
        )

    async def _fleet(self) -> FleetStatus:
        try:
            return await self._scheduler.call(ShowFleet(), DEADLINE_S)
        except ServiceError:
            return FleetStatus((), (), f"the scheduler at {self._scheduler.address}")

    async def _leases(self) -> Leases:
        try:
            return await self._directory.call(ListLeases(), DEADLINE_S)
        except ServiceError:
            return Leases((), {}, {}, 0)

    async def _gateway(self, number: int) -> ServiceStatus:
        peer = self._others.peers[number]
        if await self._others.has_ended(peer):
            status = _lost(peer.name, peer.address)
        else:
            status, _ = await _describe(peer.name, peer)
        return replace(status, address=self._config.gateway_addresses[number])

    async def _describe_shard(self, shard: str, address: str) -> Described:
        if not address:
            return ServiceStatus(shard, "", "lost"), ()
        peer = self._shards.at(address, shard)
        status, links = await _describe(shard, peer)
        if status.state == "lost":
            self._shards.drop(peer)
        return status, links


def _processes(shard: ShardStatus) -> list[tuple[str, str]]:
    """The processes of a shard, with their addresses on the control bus."""
    followers = enumerate(shard.followers, 1)
    return [(shard.id, shard.address), *((f"{shard.id}.{rank}", at) for rank, at in followers)]


async def _describe(service: str, peer: Peer) -> Described:
    try:
        info = await peer.call(Describe(), DEADLINE_S)
    except ServiceError:
        return _lost(service, peer.address), ()
    return _status(service, peer.address, info), info.links


def _lost(service: str, address: str) -> ServiceStatus:
    return ServiceStatus(service, address, "lost", waiting_for="no answer")


def _status(service: str, address: str, info: Info) -> ServiceStatus:
    return ServiceStatus(
        service,
        address,
        info.state,
        info.pid,
        info.waiting_for,
        info.rss_bytes,
        info.up_s,
        info.counters,
    )
