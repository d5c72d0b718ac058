"""Builds and runs the gateway from a configuration."""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import zmq.asyncio

from sps2.common.bus.gateways import GATEWAY
from sps2.common.bus.peer import Peer, Server
from sps2.common.config import Cluster
from sps2.common.errors import Invalid, PeerLost
from sps2.common.keys import API_KEYS, beside
from sps2.common.messages import CancelRequest, Describe, ListTraces, ShowCluster, ShowTrace
from sps2.common.model.config import read
from sps2.common.model.generation import SamplingDefaults, sampling_defaults
from sps2.common.models import fingerprint, item_bytes, locate, model_id
from sps2.common.text.tokens import Tokenizer
from sps2.services.gateway.draining import drained
from sps2.services.gateway.gateway import Gateway
from sps2.services.gateway.http import server as http
from sps2.services.gateway.http.app import application
from sps2.services.gateway.http.body import Bodies
from sps2.services.gateway.http.server import Front
from sps2.services.gateway.http.sse import KEEP_ALIVE_S
from sps2.services.gateway.keys.api_keys import Register
from sps2.services.gateway.model_card import card_of
from sps2.services.gateway.monitoring.cluster import Observer
from sps2.services.gateway.monitoring.export import Export, sender
from sps2.services.gateway.monitoring.federation import Federation
from sps2.services.gateway.monitoring.pages import Pages
from sps2.services.gateway.monitoring.readiness import AWAY_S, Readiness
from sps2.services.gateway.monitoring.request_metrics import Build, Metrics
from sps2.services.gateway.monitoring.traces import AnswerTraces
from sps2.services.gateway.names import Names
from sps2.services.gateway.others.gateways import Others, place_of
from sps2.services.gateway.others.inside import Inside
from sps2.services.gateway.others.talk import Talk
from sps2.services.gateway.protocols.batches.anywhere import Anywhere as BatchesAnywhere
from sps2.services.gateway.protocols.batches.folder import remove_leftovers
from sps2.services.gateway.protocols.batches.runner import Batches
from sps2.services.gateway.protocols.batches.store import Store
from sps2.services.gateway.protocols.responses.anywhere import Anywhere as ResponsesAnywhere
from sps2.services.gateway.protocols.responses.store import Responses
from sps2.services.gateway.repeats import Repeats
from sps2.services.gateway.running import Running
from sps2.services.gateway.served_model import Served
from sps2.services.gateway.service import GatewayService
from sps2.services.gateway.shards import Shards
from sps2.services.gateway.slots import Slots
from sps2.services.gateway.tools.families import family_of, thoughts_of
from sps2.services.memory import give_back
from sps2.services.run import About, sending_heartbeats

log = logging.getLogger(__name__)

ENDING = PeerLost(GATEWAY, "the gateway is shutting down")
ASKED_TO_THE_END = (CancelRequest, Describe, ListTraces, ShowCluster, ShowTrace)
"""What a gateway that drains still answers: these are about the answers that it finishes."""


async def serve(cluster: Cluster, about: About, stop: asyncio.Event) -> None:
    """Run until `stop`. Raises Invalid if the model, a port or a key cannot be used."""
    settings = cluster.gateway
    if settings.processes > 1 and sys.platform != "linux":
        raise Invalid("several gateways on one port need Linux: leave out gateway.processes")
    http.require_certificate(settings)
    listener = http.bind(about.host, settings.port, settings.processes > 1)
    with listener:
        remove_leftovers()
        folder = locate(cluster.model)
        parts = Parts(cluster, about, folder)
        give_back()
        async with (
            sending_heartbeats(about, cluster),
            parts.running(about.listen_at(cluster.gateway_port_of(about.rank))),
            http.serving(parts.app, listener, settings, parts.metrics.connection_dropped) as front,
        ):
            about.started = True
            await stop.wait()
            await parts.drained(front, settings.drain_s)
            parts.end(ENDING)


class Parts:
    """All parts of the gateway, connected but not yet listening.

    Args:
        folder: the model's folder.
        keep_alive_s: silence on a stream after which a comment is sent.
        away_s: see `Readiness`.
    """

    def __init__(
        self,
        cluster: Cluster,
        about: About,
        folder: Path,
        keep_alive_s: float = KEEP_ALIVE_S,
        away_s: float = AWAY_S,
    ) -> None:
        tokenizer = Tokenizer(folder)
        self.grammars = tokenizer.grammars  # before anybody waits for them
        served = served_by(cluster, folder, tokenizer)
        self._bus = cluster.bus
        self._send_s = cluster.gateway.send_s
        self._telemetry = cluster.subscribe_address
        self._context = zmq.asyncio.Context()
        self._others = Others(cluster, about.rank)
        self._place = place_of(cluster, about.rank)
        number = about.rank if self._others else None
        self._scheduler = Peer(cluster.scheduler_address, cluster.bus, "scheduler", self._context)
        self._directory = Peer(cluster.kvdir_address, cluster.bus, "kvdir", self._context)
        self._shards = Shards(cluster.bus, self._context)
        self.metrics = Metrics(
            Build(
                version("sps2"), served.model, cluster.dtype, cluster.quantize, served.fingerprint
            )
        )
        self._running = Running(
            self._scheduler,
            self._shards,
            tokenizer,
            self.metrics,
            max(1, cluster.scheduler.max_queue // 2),
        )
        self._traces = AnswerTraces(about.traces, self._scheduler, self._shards)
        self._export = self._exported(cluster)
        self.gateway = Gateway(
            served,
            tokenizer,
            self._running,
            Slots(cluster.gateway.max_requests),
            self.metrics,
            self._traces,
            Names(number),
        )
        self.readiness = Readiness(self._scheduler, cluster.bus, away_s)
        self.metrics.ready.set_function(lambda: float(self.readiness.serves))
        self._federation = Federation(cluster.bus)
        about.missing = self.readiness.waiting_for
        self._joining = Peer(cluster.joining_address, cluster.bus, "joining", self._context)
        observer = Observer(
            cluster,
            served.model,
            self._scheduler,
            self._directory,
            self._joining if cluster.joining.first_port else None,
            self._shards,
            self._others,
        )
        self._service = GatewayService(
            self.gateway,
            self.readiness,
            observer,
            self._traces,
            about.describe,
            self._scheduler,
            self._directory,
            self._others,
        )
        self._about = about
        self.batches = Batches(
            self.gateway,
            Store(cluster.gateway.files_bytes, names=Names(number)),
            self.readiness.obstacle,
            cluster.gateway.batch_requests,
            cluster.gateway.max_body_bytes,
        )
        register = _register(cluster)
        stored = Responses(
            cluster.gateway.stored_responses_bytes, cluster.gateway.stored_responses_s
        )
        counting = self.metrics.gauges, self.batches.counters, stored.counters
        about.counters = lambda: {name: n for each in counting for name, n in each().items()}
        self._repeats = Repeats(
            cluster.gateway.repeatable_bytes, cluster.gateway.repeatable_s, self._others
        )
        self._talk = Talk(self._others, register, self.gateway.turns)
        self._files = BatchesAnywhere(self.batches, self._others)
        self._responses = ResponsesAnywhere(stored, self._others)
        self.app = application(
            self.gateway,
            self.readiness.obstacle,
            self.readiness.now,
            self.readiness.missing,
            version=version("sps2"),
            bodies=Bodies(
                cluster.gateway.max_body_bytes, cluster.gateway.max_bodies_bytes, served.max_context
            ),
            batches=self._files,
            page=Pages(self.metrics, self._federation, self._others).page,
            repeats=self._repeats,
            keep_alive_s=keep_alive_s,
            register=register,
            names=(cluster.gateway.host, cluster.host, *cluster.gateway.allowed_hosts),
            origins=cluster.gateway.cors_origins,
            responses=self._responses,
            logged=cluster.gateway.access_log,
        )

    @asynccontextmanager
    async def running(self, address: str) -> AsyncIterator[str]:
        """Serve on the bus at `address` while the block runs; yields the bound address."""
        server = self._server = Server(
            [self._service, self._about],
            self._bus,
            self._context,
            audience="clients",
            send_s=self._send_s,
        )
        inside = Inside(self.gateway, self._traces)
        inner = Server(
            [inside, self._talk, self._files, self._responses, self._repeats, self._about],
            self._bus,
        )
        tasks = [
            asyncio.create_task(self.readiness.watch()),
            asyncio.create_task(self._federation.listen(self._telemetry)),
            asyncio.create_task(self._talk.run()),
        ]
        if self._export is not None:
            tasks.append(asyncio.create_task(self._export.run()))
        try:
            if self._others:
                await inner.start(self._place)
            bound = await server.start(address)
            yield bound
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.batches.close()
            await self._repeats.close()
            await server.close()
            await inner.close()
            for peer in (
                self._scheduler,
                self._directory,
                self._joining,
                self._shards,
                self._others,
            ):
                await peer.close()
            self._context.destroy(linger=0)

    def _exported(self, cluster: Cluster) -> Export | None:
        """The export of traces to a collector, if one is configured."""
        to = sender(cluster.tracing, cluster.name, version("sps2"))
        if to is None:
            return None
        export = Export(to, cluster.tracing.otlp_share, self._traces.show, self.metrics.traces)
        self._traces.ended = export.ended
        return export

    async def drained(self, front: Front, within_s: float) -> None:
        """Take no more requests, and wait for the answers in work, at most `within_s`."""
        self._about.missing = lambda: "the end of its last answers"
        self._server.retire(ENDING, ASKED_TO_THE_END)
        await front.retire()

        def is_idle() -> bool:
            is_asked = self._service.answering or self._repeats.are_awaited
            return front.is_idle() and not is_asked

        def serves() -> bool:
            return self.readiness.serves and self._scheduler.is_connected

        await drained(is_idle, serves, within_s)

    def end(self, error: PeerLost) -> None:
        """End every answer in work with `error`."""
        self._running.abort_all(error)


def _register(cluster: Cluster) -> Register | None:
    """The API keys; None if the cluster has no keys."""
    if not cluster.bus.keys:
        return None
    path = beside(cluster.bus, API_KEYS)
    register = Register(path)
    if register.is_empty():
        log.warning("no HTTP request can be answered: `spsctl keys api add NAME` adds a key")
    return register


def served_by(cluster: Cluster, folder: Path, tokenizer: Tokenizer) -> Served:
    """The model in `folder`, with the limits of this configuration."""
    config = read(folder)
    context = config.context_within(cluster.max_context)
    name, *aliases = dict.fromkeys(cluster.served_model_name or [model_id(cluster.model)])
    is_models = cluster.gateway.sampling_defaults == "model"
    parser, thoughts = cluster.gateway.tool_parser, cluster.gateway.reasoning_parser
    return Served(
        model=name,
        aliases=tuple(aliases),
        sampling_defaults=sampling_defaults(folder) if is_models else SamplingDefaults(),
        max_context=context,
        vocab_size=config.vocab_size,
        eos_ids=tokenizer.eos_ids,
        kv_token_bytes=config.kv_bytes(item_bytes(cluster.dtype, folder, config)),
        max_choices=cluster.gateway.max_choices,
        fingerprint=f"fp_{fingerprint(folder)}",
        created=int(time.time()),
        default_max_tokens=cluster.gateway.default_max_tokens,
        tool_parser=family_of(tokenizer) if parser == "auto" else parser,
        reasoning_parser=thoughts_of(tokenizer) if thoughts == "auto" else thoughts,
        card=card_of(folder, config, tokenizer, cluster.dtype, cluster.quantize),
    )
