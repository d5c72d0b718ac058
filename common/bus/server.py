"""The answering side of the control bus: one ROUTER socket, one task per call."""

import asyncio
import errno
import logging
from collections import Counter
from collections.abc import Collection
from contextlib import aclosing
from functools import partial

import zmq
import zmq.asyncio

from sps2.common.bus import wire
from sps2.common.bus.calls import Call, Client
from sps2.common.bus.curve import Audience
from sps2.common.bus.listener import Listener
from sps2.common.bus.routes import Route, routes
from sps2.common.bus.wire import Header, Kind
from sps2.common.config import Bus
from sps2.common.errors import Cancelled, Internal, Invalid, PeerLost, Refused, ServiceError
from sps2.common.vital import vital

log = logging.getLogger(__name__)

PROBE_PAUSES_S = (0.0, 0.01, 0.1, 1.0)


class Server:
    """Answers calls by the methods of `handlers`.

    A handler is cancelled (once) when its caller cancels, dies or falls silent, when its deadline
    passes, and by `close`. Errors of `sps2.common.errors` that it raises, alone or in an
    ExceptionGroup, travel to the caller; anything else is logged here and becomes Internal.
    `counters` counts what was dropped, refused or lost.

    Args:
        audience: who may call, where the bus has keys.
        send_s: seconds after which the stream of a client that reads no item is cancelled; None
            waits as long as the client is connected.
    """

    def __init__(
        self,
        handlers: object,
        bus: Bus,
        context: zmq.asyncio.Context | None = None,
        *,
        max_calls: int = 8192,
        max_client_calls: int = 2048,
        audience: Audience = "services",
        send_s: float | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.address = ""
        self._routes = routes(handlers if isinstance(handlers, list | tuple) else (handlers,))
        self._bus = bus
        self._context = context
        self._max_calls = max_calls
        self._max_client_calls = max_client_calls
        self._audience = audience
        self._send_s = send_s
        self._clients: dict[bytes, Client] = {}
        self._calls = 0
        self._closing = False
        self._retired: ServiceError | None = None
        self._answered: Collection[type] = ()

    @property
    def calls(self) -> int:
        """Number of calls in work."""
        return self._calls

    async def start(self, address: str) -> str:
        """Bind `address` ("tcp://127.0.0.1:0" picks a port) and answer calls until `close`.

        Returns:
            The bound address.

        Raises:
            Invalid: the address cannot be bound, or the bus's keys are not a service's; the message
                says why.
        """
        # a well-behaved client never has more answers than this under way
        unsent = self._max_client_calls * (wire.WINDOW + 2)
        self._listener = Listener(self._bus, self._context, self.counters, unsent, self._audience)
        self.address = self._listener.bind(address)
        self._runner = vital(asyncio.create_task(self._run(), name=f"server {self.address}"))
        return self.address

    def retire(self, error: ServiceError, answered: Collection[type] = ()) -> None:
        """Answer new calls with `error`, but for messages of the types `answered`; those in work
        go on."""
        self._retired = error
        self._answered = answered

    async def close(self) -> None:
        """Notify the callers, stop listening, cancel all handlers, wait until they have ended."""
        if self._closing or not self.address:
            return
        self._closing = True
        clients = list(self._clients.values())
        for client in clients:
            self._send(client.name, Kind.GOODBYE)
        self._listener.unbind()
        tasks = set()
        for call in [call for client in clients for call in client.calls.values()]:
            call.cancel(None)
            tasks.add(call.task)
        await asyncio.gather(*(task for task in tasks if task), return_exceptions=True)
        await self._listener.unbound()
        self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        self._listener.close()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as self._group:
            self._listener.open(self._take)
            self._group.create_task(self._listener.watch())
            self._group.create_task(self._listener.admit())
            self._group.create_task(self._find_lost())
            self._group.create_task(self._heartbeat())

    async def _find_lost(self) -> None:
        # the monitor does not say which client was lost, but a mandatory ROUTER refuses to send
        # to it, from a little after the monitor's event
        while True:
            await self._listener.disconnected.wait()
            self._listener.disconnected.clear()
            for pause_s in PROBE_PAUSES_S:
                await asyncio.sleep(pause_s)
                for client in list(self._clients.values()):
                    self._send(client.name, Kind.PING)

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self._bus.heartbeat_s)
            for client in list(self._clients.values()):
                client.missed += 1
                if client.missed > self._bus.missed_heartbeats:
                    self._lose(client, f"{self.address} heard nothing from its caller")
                elif client.missed > 1:
                    self._send(client.name, Kind.PING)

    def _take(self, frames: list[bytes]) -> None:
        if len(frames) != 3:
            self.counters["bad_frames"] += 1
            self._fail(frames[0], 0, Invalid("a message has two frames: header and body"))
            return
        name, head, body = frames
        try:
            header = wire.unpack_header(head)
        except Invalid as error:
            self.counters["bad_frames"] += 1
            self._fail(name, 0, Invalid(f"malformed header: {error}"))
            return
        if header.version != wire.VERSION:
            self.counters["bad_versions"] += 1
            theirs, ours = header.version, wire.VERSION
            self._fail(name, header.call, Invalid(f"bus version {theirs}; {ours} is spoken here"))
            return

        client = self._clients.get(name)
        if client is not None:
            client.missed = 0
        call = client.calls.get(header.call) if client is not None else None
        match header.kind:
            case Kind.CALL if call is None and header.call:
                self._open(client or Client(name), header, body)
            case Kind.CANCEL:
                if call is not None:
                    call.cancel(None)
            case Kind.CREDIT:
                if call is not None:
                    call.grant(header.credit)
            case Kind.PING:
                self._send(name, Kind.PONG)
            case _:
                self.counters["bad_frames"] += 1

    def _open(self, client: Client, header: Header, body: bytes) -> None:
        if self._closing:
            self._send(client.name, Kind.GOODBYE)
            return
        route = self._routes.get(header.method)
        try:
            if route is None:
                self.counters["unknown_methods"] += 1
                raise Invalid(f"unknown method {header.method!r}")
            if self._retired is not None and route.message not in self._answered:
                raise type(self._retired)(*self._retired.args)
            if len(body) > self._bus.max_message_bytes:
                self.counters["oversize"] += 1
                raise Invalid(
                    f"a message of {len(body)} bytes is over {self._bus.max_message_bytes}"
                )
            if self._calls >= self._max_calls or len(client.calls) >= self._max_client_calls:
                self.counters["refused"] += 1
                raise Refused("too many calls in work")
            try:
                request = wire.unpack(body, route.message)
            except Invalid as error:
                self.counters["invalid_bodies"] += 1
                raise Invalid(f"{header.method}: {error}") from error
        except ServiceError as error:
            self._fail(client.name, header.call, error)
            return

        call = Call(client, header.call, header.credit)
        if header.deadline_ms:
            late = Cancelled(f"{header.method} passed its deadline at {self.address}")
            call.timer = asyncio.get_running_loop().call_later(
                header.deadline_ms / 1000, call.cancel, late
            )
        self._clients[client.name] = client
        client.calls[call.id] = call
        self._calls += 1
        call.task = self._group.create_task(self._answer(call, route, request))
        # not in a finally: a task that is cancelled before its first step runs none
        call.task.add_done_callback(partial(self._ended, call))

    async def _answer(self, call: Call, route: Route, request: object) -> None:
        name = call.client.name
        try:
            if route.is_stream:
                async with aclosing(route.method(request)) as items:
                    async for item in items:
                        await call.spend(self._send_s)
                        self._send(name, Kind.ITEM, call.id, self._pack(item))
                self._send(name, Kind.END, call.id)
            else:
                self._send(name, Kind.REPLY, call.id, self._pack(await route.method(request)))
        except Exception as error:
            known = _service_error(error)
            if known is None:
                self.counters["faults"] += 1
                log.exception("the handler of %s failed", route.message.__name__)
                known = Internal(f"{type(error).__name__} in {route.message.__name__}")
            self._fail(name, call.id, known)

    def _pack(self, value: object) -> bytes:
        body = wire.pack(value)
        if len(body) > self._bus.max_message_bytes:
            size, limit = len(body), self._bus.max_message_bytes
            raise Internal(f"an answer of {size} bytes is over {limit}")
        return body

    def _ended(self, call: Call, task: asyncio.Task[None]) -> None:
        if call.timer is not None:
            call.timer.cancel()
        del call.client.calls[call.id]
        if not call.client.calls:
            del self._clients[call.client.name]
        self._calls -= 1
        if task.cancelled() and (call.reason or not call.is_cancelled):
            reason = call.reason or Cancelled(f"cancelled at {self.address}")
            self._fail(call.client.name, call.id, reason)

    def _fail(self, name: bytes, call: int, error: ServiceError) -> None:
        self._send(name, Kind.ERROR, call, wire.pack_error(error))

    def _send(self, name: bytes, kind: Kind, call: int = 0, body: bytes = b"") -> None:
        frames = [name, wire.pack_header(kind, call), body]
        error = self._listener.send(frames)
        if error is None:
            return
        self.counters["unsent"] += 1
        client = self._clients.get(name)
        if client is not None:
            gone = error.errno == errno.EHOSTUNREACH
            self._lose(client, "its caller is gone" if gone else "its caller reads nothing")

    def _lose(self, client: Client, why: str) -> None:
        if all(call.is_cancelled for call in client.calls.values()):
            return
        self.counters["clients_lost"] += 1
        log.info("a client of %s was lost with %d calls", self.address, len(client.calls))
        for call in client.calls.values():
            call.cancel(PeerLost(self.address, why))


def _service_error(error: Exception) -> ServiceError | None:
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, ExceptionGroup):
        known = [_service_error(each) for each in error.exceptions]
        return None if None in known else known[0]
    return None
