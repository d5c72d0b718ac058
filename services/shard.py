"""What shards of every role share: a data loop beside the control loop, and membership."""

import asyncio
import logging
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

from sps2.common import machine
from sps2.common.bus.peer import Peer, Server
from sps2.common.config import Bus, Cluster
from sps2.common.device import choose as choose_device
from sps2.common.errors import Invalid, PeerLost, ServiceError
from sps2.common.grammar import Grammars
from sps2.common.messages import (
    Announce,
    Evicted,
    Follower,
    Holding,
    Link,
    OnDisk,
    Register,
    Report,
    Role,
    Shard,
)
from sps2.common.model.config import block_types, read
from sps2.common.model.llama import Llama
from sps2.common.model.share import Share, share_of
from sps2.common.model.stage import stage_of
from sps2.common.model.weights import load as load_model
from sps2.common.models import locate
from sps2.common.text.tokens import Tokenizer
from sps2.common.transport import choose
from sps2.common.transport.encryption import decide
from sps2.common.transport.ping import Pings
from sps2.common.transport.plane import Plane
from sps2.common.vital import vital
from sps2.kernels import native
from sps2.services import memory
from sps2.services.compatibility import greet
from sps2.services.data_loop import DataLoop
from sps2.services.draining import Draining, longest_s, retire
from sps2.services.measuring import MeasuringService
from sps2.services.run import About, sending_heartbeats
from sps2.services.stage_meeting import StageTeam
from sps2.services.tp_processes import Led, Loyalty, Team, connect, leading, meet

Result = TypeVar("Result")

AGAIN_S = 0.1
"""Pause before a shard joins a service again that it has lost."""

log = logging.getLogger(__name__)


def peer_name(service: str) -> str:
    """A data-plane name that no other process has, nor this service after a restart."""
    return f"{service}/{os.getpid():x}{secrets.token_hex(2)}"


class Inventory(Protocol):
    """What a shard with pages reports to the KV directory, and evicts for it."""

    urgent: asyncio.Event
    """Set when pages turned out to be missing: the next report is not to wait."""

    def inventory(self) -> tuple[Holding, ...]:
        """What the shard holds for requests."""
        ...

    def cached(self) -> tuple[bytes, ...]:
        """Hashes of all cached pages."""
        ...

    def news(self) -> tuple[bytes, ...]:
        """Hashes of pages that ended requests cached and that are not `reported` yet."""
        ...

    def missing(self) -> tuple[bytes, ...]:
        """Hashes that the directory wrongly believes to be here and that are not `reported` yet."""
        ...

    def all_on_disk(self) -> OnDisk:
        """All pages on disk."""
        ...

    def news_of_disk(self) -> OnDisk:
        """Pages that came to the disk, or went from it, and that are not `reported` yet."""
        ...

    def reported(self, hashes: tuple[bytes, ...], on_disk: OnDisk) -> None:
        """These hashes, and this news of the disk, were reported to the directory."""
        ...

    async def evict(self, evicted: Evicted) -> None:
        """Drop pages from the cache, and delete pages on disk."""
        ...


class Counting(Protocol):
    """A service of a shard that adds counters to the shard's heartbeats."""

    def counters(self) -> dict[str, float]:
        """Monotonic counts and current gauges."""
        ...


class Membership:
    """Keeps a shard registered with the scheduler and, if it has pages, with the directory."""

    def __init__(
        self,
        shard: Shard,
        scheduler: Peer,
        directory: Peer,
        bus: Bus,
        inventory: Inventory | None,
        drains: Callable[[], bool] = lambda: False,
    ) -> None:
        self._shard = shard
        self._scheduler = scheduler
        self._directory = directory
        self._bus = bus
        self._inventory = inventory
        self._drains = drains
        self._deadline_s = bus.heartbeat_s * bus.missed_heartbeats
        self._missing = {"scheduler": ""} | ({"KV directory": ""} if inventory else {})
        self._ahead_s = 0.0

    def missing(self) -> str:
        """Which of the two the shard waits for, in words, and why if they refuse it."""
        return ", ".join(f"the {name}{why}" for name, why in sorted(self._missing.items()))

    def counters(self) -> dict[str, float]:
        """For heartbeats: by how many seconds this shard's clock is ahead of the scheduler's."""
        return {"clock_ahead_s": self._ahead_s}

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Stay a member while the context is open; joins lost services again when they are back."""
        works = {"registering": self._keep("scheduler", self._register)}
        if inventory := self._inventory:
            announce = partial(self._announce, inventory)
            works["announcing"] = self._keep("KV directory", announce)
            works["reporting"] = self._report(inventory)
        tasks = [vital(asyncio.create_task(work, name=name)) for name, work in works.items()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _keep(self, name: str, join: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            why = ""
            try:
                await join()
            except PeerLost:
                if name not in self._missing:
                    log.warning("the %s was lost; waiting for it", name)
                await asyncio.sleep(AGAIN_S)  # it may be refused at once, as by a proxy before it
            except ServiceError as error:
                why = f" ({error})"
                if self._missing.get(name) != why:
                    log.warning("the %s: %s", name, error)
                self._missing[name] = why
                await asyncio.sleep(self._bus.heartbeat_s)
            finally:
                self._missing[name] = why

    async def _register(self) -> None:
        self._ahead_s = await greet(self._scheduler, self._shard.id, self._deadline_s)
        async with self._scheduler.stream(Register(self._shard, self._drains())) as accepted:
            async for _ in accepted:
                self._missing.pop("scheduler", None)

    async def _announce(self, inventory: Inventory) -> None:
        shard = self._shard
        await greet(self._directory, shard.id, self._deadline_s)
        announce = Announce(
            shard.id,
            shard.peer.name,
            shard.pages,
            shard.page_tokens,
            inventory.inventory(),
            inventory.cached(),
            inventory.all_on_disk(),
        )
        async with self._directory.stream(announce) as evictions:
            async for evicted in evictions:
                self._missing.pop("KV directory", None)
                await inventory.evict(evicted)

    async def _report(self, inventory: Inventory) -> None:
        shard = self._shard
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._bus.heartbeat_s):
                    await inventory.urgent.wait()
            inventory.urgent.clear()
            if "KV directory" in self._missing:
                continue
            news, missing, on_disk = inventory.news(), inventory.missing(), inventory.news_of_disk()
            held = inventory.inventory()
            try:
                await self._directory.call(
                    Report(shard.id, shard.peer.name, held, news, missing, on_disk),
                    deadline_s=self._deadline_s,
                )
                inventory.reported((*news, *missing), on_disk)
            except ServiceError as error:
                log.warning("reporting to the KV directory: %s", error)


@dataclass(frozen=True)
class ReadyShard:
    """A shard process with its model, or share or stage of it, and a data plane that listens."""

    id: str
    role: Role
    cluster: Cluster
    about: About
    team: Team | StageTeam
    model: Llama
    plane: Plane
    data: DataLoop
    grammars: Grammars | None
    """Of the model, for what draws tokens: the leader."""

    async def led(self) -> list[Led]:
        """The processes that this one leads; waits until all of them serve."""
        return connect(await self.team.followers(), self.id, self.cluster.bus)

    @asynccontextmanager
    async def following(
        self, services: Sequence[object], stop: asyncio.Event
    ) -> AsyncIterator[None]:
        """Serve `services` to the leader while the context is open; sets `stop` if that is lost.

        Then it goes on until the leader has ended.
        """
        loyalty = Loyalty(stop)
        server = Server([*services, loyalty, self.about], self.cluster.bus)
        address = await server.start(self.about.listen_at())
        self.team.present(Follower(address, self.plane.peer))
        self.about.started = True
        async with sending_heartbeats(self.about, self.cluster):
            yield
            await loyalty.released(longest_s(self.cluster))
        await server.close()

    @asynccontextmanager
    async def member(
        self,
        services: Sequence[Counting],
        stop: asyncio.Event,
        led: Sequence[Led],
        pages: int = 0,
        page_tokens: int = 0,
        inventory: Inventory | None = None,
        own_gflops: Callable[[], Coroutine[Any, Any, float]] | None = None,
    ) -> AsyncIterator[None]:
        """Serve `services` on the bus and be a member of the cluster while the context is open.

        Then the shard finishes its requests, or hands them over; see `draining.retire`.

        Args:
            stop: is set if another process of the shard is told to end.
            own_gflops: measures, on the data loop, how fast the shard computes prompts.
        """
        bus, gflops = self.cluster.bus, 0.0
        if own_gflops is not None and self.cluster.sharing.gflops == "measured":
            gflops = await self.data.run(own_gflops())
            log.info("computes %.3g GFLOP/s", gflops)
        measuring = MeasuringService(Pings(self.plane), self.data, own_gflops)
        drains = Draining()
        server = Server([*services, measuring, drains, self.about, self.about.traces], bus)
        address = await server.start(self.about.listen_at())
        followers = tuple(Follower(each.bus.address, each.plane) for each in led)
        peer = self.plane.peer
        shard = Shard(
            self.id,
            self.role,
            os.getpid(),
            address,
            peer,
            pages,
            page_tokens,
            followers,
            torch.get_num_threads(),
            1 if self.model.device.type == "cuda" else machine.cores(),
            gflops,
        )
        scheduler = Peer(self.cluster.scheduler_address, bus, name="scheduler")
        directory = Peer(self.cluster.kvdir_address, bus, name="kvdir")
        membership = Membership(shard, scheduler, directory, bus, inventory, drains)
        self.about.missing = membership.missing
        plane = self.about.counters
        counting = (*services, membership)
        self.about.counters = lambda: _summed(plane(), *(each.counters() for each in counting))
        self.about.started = True
        async with (
            sending_heartbeats(self.about, self.cluster),
            membership.kept(),
            leading(led, stop),
        ):
            yield
            await retire(self.id, self.cluster)
        await server.close()
        for each in (scheduler, directory, *(each.bus for each in led)):
            await each.close()


@asynccontextmanager
async def ready_shard(cluster: Cluster, about: About, role: Role) -> AsyncIterator[ReadyShard]:
    """Meet the shard's other processes, load the model, open the data plane; close them later."""
    torch.set_num_threads(cluster.shard_threads)
    memory.keep()
    folder, tp = locate(cluster.model), cluster.tp_of(role)
    config = read(folder)
    stage = None if cluster.pp == 1 else stage_of(config, about.rank, cluster.pp)
    share_of(config, tp)
    device, where = choose_device(cluster.device, about.neighbours.card)
    if device.place.type == "cuda" and tp > torch.cuda.device_count():
        raise Invalid(
            f"tp {tp} takes as many GPUs of one machine; here are "
            f"{torch.cuda.device_count()}: take a smaller tp, and more shards instead"
        )
    team: Team | StageTeam
    if stage is None:
        port = cluster.meeting_port_of(role, about.index)
        team = await meet(Share(about.rank, tp), port, device.place)
        log.info("loading %s", folder)
    else:
        team = StageTeam(cluster, f"{role}-{about.index}", *stage[:2])
        log.info("loading layers %d to %d of %s", *stage.layers, folder)
    grammars = None if about.rank else Tokenizer(folder).grammars
    form = cluster.dtype, device.place, cluster.quantize
    model = load_model(folder, *form, collectives=team.collectives, stage=stage)
    if device.place.type == "cuda":
        from sps2.services.gpu_start import warm_up  # Triton may not be installed

        warm_up(model, cluster.kv.dtype == "int8")
    backend, reason = choose(cluster.transport, cluster.encryption)
    key, protection = decide(cluster, about.host, backend)
    weights = str(model.dtype).removeprefix("torch.")
    if cluster.quantize != "none":
        weights = f"{cluster.quantize}, else {weights}"
    elif forms := sorted(set(block_types(folder).values())):
        weights = f"{', '.join(forms)}, else {weights}"
    kernels = native.LEVELS[native.level]
    if native.unfit:
        log.warning("%s; torch does their work, slower: see `spsctl doctor`", native.unfit)
    log.info(
        "data plane: %s; %s; device: %s; kernels: %s; weights: %s",
        *(reason, protection, where, kernels, weights),
    )
    data = DataLoop()
    data.start()
    watching = vital(asyncio.create_task(data.watch(), name="watching the data loop"))
    plane = Plane(peer_name(about.service), backend, device, key)
    await data.run(plane.start(about.host, about.ports[1]))
    about.counters = lambda: {name: float(count) for name, count in dict(plane.counters).items()}
    about.links = lambda: _links(about.service, plane)
    try:
        yield ReadyShard(about.service, role, cluster, about, team, model, plane, data, grammars)
    finally:
        watching.cancel()
        await data.run(plane.close())
        await data.close()
        await team.close()


def _summed(*parts: Mapping[str, float]) -> dict[str, float]:
    totals = Counter[str]()
    for part in parts:
        totals.update(part)
    return dict(totals)


def _links(shard: str, plane: Plane) -> tuple[Link, ...]:
    return tuple(
        Link(shard, peer.partition("/")[0], totals["sent"], totals["frames_sent"])
        for peer, totals in dict(plane.links).items()
        if totals["sent"]
    )
