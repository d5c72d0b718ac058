"""Events of all services on one PUB/SUB address: heartbeats, and the stages of requests."""

import asyncio
import errno
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import msgspec
import zmq
import zmq.asyncio

from sps2.common import keys
from sps2.common.bus import curve, wire
from sps2.common.bus.curve import Authenticator
from sps2.common.config import Bus
from sps2.common.errors import Invalid
from sps2.common.messages import Link, Struct
from sps2.common.resident import Resident
from sps2.common.vital import end_process, vital

log = logging.getLogger(__name__)

MAX_EVENT_BYTES = 1 << 20
QUEUE = 1000
"""Events queued for a slow receiver; further ones are dropped."""


class Heartbeat(Struct, frozen=True, tag=True):
    """A heartbeat of a service, with its counters and gauges by metric name."""

    service: str
    pid: int
    at_s: float
    """Seconds since the epoch."""
    rss_bytes: int
    counters: dict[str, float] = msgspec.field(default_factory=dict)
    state: str = ""
    """The state, as in `Info`."""
    waiting_for: str = ""
    links: tuple[Link, ...] = ()
    tokens: dict[str, int] = msgspec.field(default_factory=dict)
    """Tokens generated so far, by request."""

    def sent_bytes(self) -> dict[str, int]:
        """Bytes sent over its links, summed by shard: a restarted shard has several links."""
        totals = Counter[str]()
        for link in self.links:
            totals[shard_of(link.target)] += link.sent_bytes
        return dict(totals)


class RequestEvent(Struct, frozen=True, tag=True):
    """A request entered `stage`, or progressed within it as `detail` says.

    Stages: those of `RequestStatus`, and "ended", whose detail has an "error" if it failed.
    Details: docs/operating.md lists them.
    """

    request: str
    stage: str
    at_s: float
    detail: dict[str, str | float] = msgspec.field(default_factory=dict)


Event = Heartbeat | RequestEvent


def shard_of(service: str) -> str:
    """The shard that a process belongs to: "prefill-0.1" is the second process of prefill-0."""
    return service.partition(".")[0]


def role_of(service: str) -> str:
    """The role of a shard or its process, for example "prefill"; other services are their role."""
    return shard_of(service).partition("-")[0]


class Hub:
    """Forwards events published at one address to the subscribers of another, in a thread.

    Where the bus has keys, only services may publish; clients may subscribe too. When a client is
    revoked, all connections are closed, and those that still may reconnect.
    """

    def __init__(self, publish_address: str, subscribe_address: str, bus: Bus) -> None:
        self.counters: Counter[str] = Counter()
        self._addresses = (publish_address, subscribe_address)
        self._bus = bus
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> tuple[str, str]:
        """Bind and forward until `close`.

        Returns:
            The bound addresses (to publish to, to subscribe to).

        Raises:
            Invalid: an address cannot be bound, or the bus's keys are not a service's; the
                message says why.
        """
        self._addresses = self._open()
        if self._bus.keys:
            self._watching = vital(asyncio.create_task(self._watch(), name="telemetry keys"))
        return self._addresses

    async def close(self) -> None:
        """Stop forwarding; takes well under a millisecond."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        await self._shut()

    async def _watch(self) -> None:
        known = self._authenticator.clients()
        while True:
            await asyncio.sleep(self._bus.heartbeat_s)
            now = self._authenticator.clients()
            if not known <= now:
                await self._shut()
                await self._reopen()
            known = now

    async def _reopen(self) -> None:
        while True:
            try:
                self._open()
                return
            except Invalid as error:
                log.error("telemetry stands still: %s", error)
            await asyncio.sleep(self._bus.heartbeat_s)

    def _open(self) -> tuple[str, str]:
        self._authenticator = Authenticator(self._bus, self.counters)
        self._context = zmq.Context()
        self._authenticator.attend(self._context)
        self._entry = self._context.socket(zmq.XSUB)
        self._exit = self._context.socket(zmq.XPUB)
        self._authenticator.guard(self._entry, "services")
        self._authenticator.guard(self._exit, "clients")
        for socket, address in zip((self._entry, self._exit), self._addresses, strict=True):
            socket.maxmsgsize = MAX_EVENT_BYTES
            socket.linger = 0
            socket.sndhwm = socket.rcvhwm = QUEUE
            try:
                socket.bind(address)
            except zmq.ZMQError as error:
                self._context.destroy(0)
                why = "the port is in use" if error.errno == errno.EADDRINUSE else str(error)
                raise Invalid(f"cannot listen on {address}: {why}") from error
        publish, subscribe = (
            socket.getsockopt_string(zmq.LAST_ENDPOINT) for socket in (self._entry, self._exit)
        )
        self._admitting = vital(
            asyncio.create_task(self._authenticator.run(), name="telemetry door")
        )
        self._thread = threading.Thread(target=self._forward, name="telemetry", daemon=True)
        self._thread.start()
        return publish, subscribe

    async def _shut(self) -> None:
        self._admitting.cancel()
        await asyncio.wait({self._admitting})
        self._authenticator.close()
        self._context.term()  # ends the proxy, and returns when its thread closed the sockets
        self._thread.join()

    def _forward(self) -> None:
        try:
            zmq.proxy(self._entry, self._exit)
        except zmq.ContextTerminated:
            pass
        except zmq.ZMQError as error:
            end_process("the telemetry hub failed", error)
        self._entry.close(0)
        self._exit.close(0)


class Publisher:
    """Publishes events of `service` without ever waiting; `dropped` counts those without room.

    Events are lost, uncounted, while the hub is away or nobody subscribes.
    """

    def __init__(self, address: str, service: str, bus: Bus) -> None:
        self.dropped = 0
        self._service = service
        self._limit = min(bus.max_message_bytes, MAX_EVENT_BYTES)
        self._memory = Resident()
        key = keys.of(bus)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.linger = 0
        self._socket.sndhwm = QUEUE
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)  # a full queue is an error that can be counted
        curve.dial(self._socket, key)
        self._socket.connect(address)

    def publish(self, event: Event) -> None:
        """Send `event`, or drop it if the queue is full or the event too large."""
        body = wire.pack(event)
        if len(body) > self._limit:
            self.dropped += 1
            return
        try:
            self._socket.send(body, zmq.DONTWAIT)
        except zmq.Again:
            self.dropped += 1

    def heartbeat(
        self,
        counters: Mapping[str, float],
        state: str = "",
        waiting_for: str = "",
        links: tuple[Link, ...] = (),
        tokens: Mapping[str, int] | None = None,
    ) -> None:
        """Publish a heartbeat of this process."""
        self.publish(
            Heartbeat(
                self._service,
                os.getpid(),
                time.time(),
                self._memory.nbytes(),
                dict(counters),
                state,
                waiting_for,
                links,
                dict(tokens or {}),
            )
        )

    def close(self) -> None:
        self._socket.close()
        self._context.term()


class Subscriber:
    """An async iterator over the events of all services from now on. It survives losses of the hub.

    `counters` counts malformed events. An iterator that is not read drops events.
    """

    def __init__(self, address: str, bus: Bus) -> None:
        self.counters: Counter[str] = Counter()
        key = keys.of(bus)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = QUEUE
        self._socket.maxmsgsize = MAX_EVENT_BYTES
        self._socket.subscribe(b"")
        curve.dial(self._socket, key)
        self._socket.connect(address)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            frames = await self._socket.recv_multipart()
            try:
                if len(frames) != 1:
                    raise Invalid("an event has one frame")
                event: Event = wire.unpack(frames[0], Event)  # type: ignore[arg-type]
            except Invalid:
                self.counters["bad_events"] += 1
                continue
            return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()
        self._context.term()
