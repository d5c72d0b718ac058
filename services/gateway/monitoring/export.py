"""Sends sampled traces to a collector, one after the other, without delaying requests."""

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
"""Traces that may wait to be sent; more are dropped."""


class Sender(Protocol):
    """Sends traces to a collector."""

    def send(self, trace: Trace) -> bool: ...
    def close(self) -> None: ...


def sender(tracing: Tracing, cluster: str, version: str) -> Sender | None:
    """The sender for the configured collector; None if there is none.

    Raises:
        Invalid: OpenTelemetry is not installed, or the settings are wrong.
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
        from sps2.services.gateway.monitoring.otlp import Exporter
    except ImportError as error:
        raise Invalid(
            "tracing.otlp_endpoint needs OpenTelemetry: pip install 'sps2[otel]'"
        ) from error
    return Exporter(endpoint, cluster, version)


class Export:
    """Sends the traces that are sampled.

    Args:
        share: which share of the answers is sampled, unless the caller decides.
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
        """Queue the trace of an answer that has ended, if it is sampled.

        Args:
            is_callers: whether the context is the caller's; then the caller decided on sampling.
        """
        if not (context.is_sampled if is_callers else random.random() < self._share):
            return
        try:
            self._names.put_nowait(name)
        except asyncio.QueueFull:
            self._outcomes["dropped"].inc()

    async def run(self) -> None:
        """Send queued traces until cancelled."""
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
