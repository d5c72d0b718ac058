"""Which traces are sent to a collector, one after the other, without holding anybody up."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from prometheus_client import Counter

from sps2.common.config import Tracing
from sps2.common.errors import Invalid, ServiceError
from sps2.common.messages import Trace
from sps2.common.tracing import Context

log = logging.getLogger(__name__)

WAITING = 64
"""Answers whose traces are still to be sent; of more none is."""


class Sender(Protocol):
    """A collector."""

    def send(self, trace: Trace) -> bool: ...
    def close(self) -> None: ...


def sender(tracing: Tracing, cluster: str, version: str) -> Sender | None:
    """What traces are sent with; None where they are not sent.

    Raises:
        Invalid: OpenTelemetry is not installed, or the address is none.
    """
    endpoint = tracing.otlp_endpoint
    if not endpoint:
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise Invalid(
            f"tracing.otlp_endpoint {endpoint!r} is no http address; collectors listen at "
            "http://HOST:4318/v1/traces"
        )
    if not tracing.kept:
        raise Invalid("tracing.otlp_endpoint needs tracing.kept to be at least 1")
    try:
        from sps2.services.gateway.watch.otlp import Exporter
    except ImportError as error:
        raise Invalid(
            "tracing.otlp_endpoint needs OpenTelemetry: pip install 'sps2[otel]'"
        ) from error
    return Exporter(endpoint, cluster, version)


class Export:
    """Sends what is sampled.

    Args:
        show: the trace of an answer, by its name.
        counter: of traces, by the label "outcome".
    """

    def __init__(
        self,
        to: Sender,
        share: float,
        show: Callable[[str], Awaitable[Trace]],
        counter: Counter,
    ) -> None:
        self._to = to
        self._share = share
        self._show = show
        self._outcomes = {each: counter.labels(each) for each in ("sent", "failed", "dropped")}
        self._names: asyncio.Queue[str] = asyncio.Queue(WAITING)

    def ended(self, name: str, context: Context, is_callers: bool) -> None:
        """An answer has ended.

        Args:
            is_callers: whether the context is the caller's, which then has decided.
        """
        if not (context.is_sampled if is_callers else random.random() < self._share):
            return
        try:
            self._names.put_nowait(name)
        except asyncio.QueueFull:
            self._outcomes["dropped"].inc()

    async def run(self) -> None:
        """Send, until cancelled."""
        try:
            while True:
                is_sent = await self._send(await self._names.get())
                self._outcomes["sent" if is_sent else "failed"].inc()
        finally:
            self._to.close()

    async def _send(self, name: str) -> bool:
        try:
            return await asyncio.to_thread(self._to.send, await self._show(name))
        except ServiceError as error:
            log.warning("the trace of %s was not sent: %s", name, error)
            return False
