"""The gateway on the bus: handlers for the SDK and spsctl."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

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
from sps2.common.api.answer_ids import NAME_CHARS
from sps2.common.api.pins import PinPrompt
from sps2.common.bus.peer import Peer
from sps2.common.errors import Refused
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


def new_name() -> str:
    """A random name for an answer: 12 hexadecimal digits."""
    return secrets.token_hex(NAME_CHARS // 2)


class GatewayService:
    """Bus handlers around a `Gateway`.

    Args:
        describe: this process's description of itself.
        scheduler, directory: on the bus.
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
    ) -> None:
        self._gateway = gateway
        self._readiness = readiness
        self._observer = observer
        self._traces = traces
        self._describe = describe
        self._scheduler = scheduler
        self._directory = directory

    async def complete(self, request: CompletionRequest) -> AsyncIterator[CompletionChunk]:
        await self._check_ready()
        chunks = self._gateway.complete(request, new_name())
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatChunk]:
        await self._check_ready()
        chunks = self._gateway.chat(request, new_name())
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def estimate_request(self, request: EstimateRequest) -> Estimate:
        await self._check_ready()
        return await self._gateway.estimate(request, new_name())

    async def tokenize(self, request: Tokenize) -> Tokens:
        return await self._gateway.tokenize(request)

    async def detokenize(self, request: Detokenize) -> Text:
        return await self._gateway.detokenize(request)

    async def list_models(self, request: ListModels) -> Models:
        return self._gateway.models()

    async def show_cluster(self, request: ShowCluster) -> ClusterStatus:
        return await self._observer.status(await self._describe(Describe()))

    async def show_trace(self, request: ShowTrace) -> Trace:
        return await self._traces.show(request.request)

    async def list_traces(self, request: ListTraces) -> Traces:
        return self._traces.listed()

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
        return await self._gateway.pin(request, new_name())

    async def unpin_all(self, request: UnpinAll) -> Pinned:
        return await self._directory.call(request)

    async def cancel_request(self, request: CancelRequest) -> Done:
        self._gateway.running.cancel(request.request)
        return Done()

    async def _check_ready(self) -> None:
        if reason := await self._readiness.obstacle():
            raise Refused(f"the cluster is not ready: it waits for {reason}")
