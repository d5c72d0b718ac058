"""The gateway on the bus: handlers for the SDK and spsctl."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from sps2.common.api import (
    ChatChunk,
    ChatRequest,
    CompletionChunk,
    CompletionRequest,
    Detokenize,
    Estimate,
    EstimateRequest,
    ListModels,
    Models,
    Text,
    Tokenize,
    Tokens,
)
from sps2.common.api.pins import PinPrompt
from sps2.common.bus.peer import Peer
from sps2.common.errors import Invalid, PeerLost, Refused
from sps2.common.messages import (
    CancelRequest,
    ClusterStatus,
    Describe,
    Done,
    Drain,
    DropCache,
    Dropped,
    Info,
    ListTraces,
    Pinned,
    Record,
    Recorded,
    SetDuty,
    ShowCluster,
    ShowTrace,
    Trace,
    Traces,
    Undrain,
    Unfinished,
    UnpinAll,
)
from sps2.services.gateway.gateway import Gateway
from sps2.services.gateway.monitoring.cluster import Observer
from sps2.services.gateway.monitoring.readiness import Readiness
from sps2.services.gateway.monitoring.traces import AnswerTraces
from sps2.services.gateway.others.gateways import Others

T = TypeVar("T")


class GatewayService:
    """Bus handlers around a `Gateway`.

    Args:
        describe: this process's description of itself.
        scheduler, directory: on the bus.

    Attributes:
        answering: how many answers are in work.
    """

    def __init__(
        self,
        gateway: Gateway,
        readiness: Readiness,
        observer: Observer,
        traces: AnswerTraces,
        describe: Callable[[Describe], Awaitable[Info]],
        scheduler: Peer,
        directory: Peer,
        others: Others,
    ) -> None:
        self.answering = 0
        self._gateway = gateway
        self._readiness = readiness
        self._observer = observer
        self._traces = traces
        self._describe = describe
        self._scheduler = scheduler
        self._directory = directory
        self._others = others

    async def complete(self, request: CompletionRequest) -> AsyncIterator[CompletionChunk]:
        chunks = self._gateway.complete(request, self._gateway.names())
        async with aclosing(self._answer(chunks)) as answer:
            async for chunk in answer:
                yield chunk

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatChunk]:
        chunks = self._gateway.chat(request, self._gateway.names())
        async with aclosing(self._answer(chunks)) as answer:
            async for chunk in answer:
                yield chunk

    async def estimate_request(self, request: EstimateRequest) -> Estimate:
        await self._check_ready()
        return await self._gateway.estimate(request, self._gateway.names())

    async def tokenize(self, request: Tokenize) -> Tokens:
        return await self._gateway.tokenize(request)

    async def detokenize(self, request: Detokenize) -> Text:
        return await self._gateway.detokenize(request)

    async def list_models(self, request: ListModels) -> Models:
        return self._gateway.models()

    async def show_cluster(self, request: ShowCluster) -> ClusterStatus:
        return await self._observer.status(await self._describe(Describe()))

    async def show_trace(self, request: ShowTrace) -> Trace:
        try:
            return await self._traces.show(request.request)
        except Invalid as unknown:
            error: Invalid | PeerLost = unknown
            for peer in self._others.peers.values():
                try:
                    if (trace := await self._others.ask(peer, request)) is not None:
                        return trace
                except Invalid:
                    continue
                except PeerLost as silent:
                    error = silent
            raise error from None

    async def list_traces(self, request: ListTraces) -> Traces:
        found = await self._others.all(self._traces.listed(), request)
        traces = (trace for listed in found for trace in listed.traces)
        return Traces(tuple(sorted(traces, key=lambda trace: trace.age_s)))

    async def record(self, request: Record) -> AsyncIterator[Recorded]:
        async with self._scheduler.stream(request) as items:
            async for item in items:
                yield item

    async def set_duty(self, request: SetDuty) -> Done:
        return await self._scheduler.call(request)

    async def drain(self, request: Drain) -> AsyncIterator[Unfinished]:
        async with self._scheduler.stream(request) as items:
            async for item in items:
                yield item

    async def undrain(self, request: Undrain) -> Done:
        return await self._scheduler.call(request)

    async def drop_cache(self, request: DropCache) -> Dropped:
        return await self._directory.call(request)

    async def pin_prompt(self, request: PinPrompt) -> Pinned:
        return await self._gateway.pin(request, self._gateway.names())

    async def unpin_all(self, request: UnpinAll) -> Pinned:
        return await self._directory.call(request)

    async def cancel_request(self, request: CancelRequest) -> Done:
        if (holder := self._others.holder(request.request)) is not None:
            return await self._others.call(holder, request)
        self._gateway.running.cancel(request.request)
        return Done()

    async def _answer(self, chunks: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        self.answering += 1
        try:
            async with aclosing(chunks):
                await self._check_ready()
                async for chunk in chunks:
                    yield chunk
        finally:
            self.answering -= 1

    async def _check_ready(self) -> None:
        if reason := await self._readiness.obstacle():
            raise Refused(f"the cluster is not ready: it waits for {reason}")
