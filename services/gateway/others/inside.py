"""What this gateway does for the others: each handler is about what is here alone."""

import asyncio

from sps2.common.messages import (
    CancelRequest,
    Done,
    ListTraces,
    Request,
    ShowTrace,
    Struct,
    Trace,
    Traces,
)
from sps2.services.gateway.gateway import Gateway
from sps2.services.gateway.monitoring.traces import AnswerTraces


class MetricsPage(Struct, frozen=True):
    text: str


class ReadMetrics(Request[MetricsPage], frozen=True):
    """Gateway to gateway: return your own metrics, as Prometheus reads them."""


class Inside:
    """Handlers for the other gateways."""

    def __init__(self, gateway: Gateway, traces: AnswerTraces) -> None:
        self._gateway = gateway
        self._traces = traces

    async def cancel_request(self, request: CancelRequest) -> Done:
        self._gateway.running.cancel(request.request)
        return Done()

    async def show_trace(self, request: ShowTrace) -> Trace:
        return await self._traces.show(request.request)

    async def list_traces(self, request: ListTraces) -> Traces:
        return self._traces.listed()

    async def read_metrics(self, request: ReadMetrics) -> MetricsPage:
        page = await asyncio.to_thread(self._gateway.metrics.page)
        return MetricsPage(page.decode())
