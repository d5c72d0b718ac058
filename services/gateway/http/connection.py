"""One HTTP connection, within limits: of connections, of the time and size of a request, and of the
time that a client may take to read."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from sps2.common.api import ErrorBody, Problem
from sps2.common.config import Gateway
from sps2.services.gateway.http.parser import Parser

LINGER_S = 2.0
"""How long a refused client's remaining bytes are still read: otherwise the system would reset the
connection, and the client would lose the answer."""
LINGERING = 256
"""Connections over the limit that get an error response; more are just closed."""
IDLE_S = 1.0
"""A connection without a request for this long is closed if another needs its place."""

log = logging.getLogger(__name__)

Dropped = Callable[[str], None]
"""Called with the reason when the gateway ends a connection because of its client."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with more limits; a client over one gets an error and is disconnected."""

    limits = Gateway()
    dropped: Dropped = staticmethod(lambda why: None)
    idle: dict["Connection", float]
    """Connections without a complete request head, and since when; longest first."""
    is_retired = False
    """Whether connections end with their next answer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = Parser(self)  # type: ignore[assignment]
        self._clock: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._in_head = True
        self._head_bytes = 0
        self._is_refused = False
        self._ends_after: RequestResponseCycle | None = None
        self._ends_at_s: float | None = None

    @property
    def is_answering(self) -> bool:
        """Whether a request is in work."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def is_new(self) -> bool:
        """Whether there was no request yet."""
        return self.cycle is None

    def retire(self) -> None:
        """End with the answer to the last request that has come, or to the first that comes."""
        if self.is_answering:
            for cycle in (self.cycle, *(cycle for cycle, _ in self.pipeline)):
                cycle.keep_alive = False
        elif self.cycle is not None and not self._head_bytes:
            self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        most = self.limits.max_connections
        if len(self.connections) <= most or self._is_given_room():
            self._arm()
            self.idle[self] = self.loop.time()
        elif len(self.connections) > most + LINGERING:
            self.dropped("too_many_connections")
            transport.close()
        else:
            self._refuse(503, f"there are {most} connections already", "too_many_connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self.idle.pop(self, None)
        self._disarm()
        self._watch_no_more()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self._is_refused:
            return
        if self._ends_at_s is not None:
            self._linger()
        elif self._clock is None and (self.cycle is None or self.cycle.response_complete):
            self._arm()
        self._head_bytes += len(data) if self._in_head else 0
        super().data_received(data)
        if self._in_head and self._head_bytes > self.limits.max_header_bytes:
            most = self.limits.max_header_bytes
            self._refuse(431, f"the headers are over {most} bytes", "headers_too_large")

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is no HTTP request", "invalid_http")

    # what the parser calls

    def on_message_begin(self) -> None:
        self._arm()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.parser.is_offered:  # type: ignore[attr-defined]
            return
        self._in_head, self._head_bytes = False, 0
        self.idle.pop(self, None)
        self._arm()
        super().on_headers_complete()
        if self.is_retired:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        if self.parser.is_offered:  # type: ignore[attr-defined]
            return
        self._in_head = True
        self._disarm()
        super().on_message_complete()
        self.cycle.more_body = False  # an answer may have been complete before
        if self._ends_after is self.cycle:
            self.transport.close()

    # answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, partial(self._answer, cycle, app))

    async def _answer(
        self,
        cycle: RequestResponseCycle,
        app: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Run the application, and send its answer in a form that this client supports."""
        is_unframed = False

        async def framed(message: Message) -> None:
            nonlocal is_unframed
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", ())}
                if scope["http_version"] == "1.0" and b"content-length" not in names:
                    # chunks are HTTP/1.1: here the answer ends with the connection
                    is_unframed, cycle.chunked_encoding = True, False
                if cycle.waiting_for_100_continue and cycle.more_body:
                    cycle.keep_alive = False  # unknown whether the body still comes
            elif is_unframed and scope["method"] != "HEAD":
                cycle.expected_content_length = len(message.get("body", b""))
            is_last = message["type"] == "http.response.body" and not message.get("more_body")
            if is_last and cycle.more_body and not cycle.keep_alive:
                cycle.keep_alive, self._ends_after = True, cycle
            await send(message)

        try:
            await app(scope, receive, framed)
        except asyncio.CancelledError:  # the server ends, after its last wait for its clients
            log.warning(
                "%s %s ends unfinished with the gateway: its client sends or reads too slowly",
                scope["method"],
                scope["path"],
            )
            self._refuse(503, "the gateway is shutting down", "peer_lost")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch()
        elif self._ends_after is not None:
            self._ends_at_s = self.loop.time() + self.limits.receive_s
            self._linger()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    def _linger(self) -> None:
        """Keep reading the rest of a request that was answered early."""
        self._disarm()
        left_s = (self._ends_at_s or 0.0) - self.loop.time()
        if left_s <= 0:
            self.transport.close()
        else:
            self._clock = self.loop.call_later(min(LINGER_S, left_s), self.transport.close)

    def _is_given_room(self) -> bool:
        """Close the longest idle connection for this one; False if none is idle for `IDLE_S`."""
        longest = next(iter(self.idle), None)
        if longest is None or self.loop.time() - self.idle[longest] < IDLE_S:
            return False
        del self.idle[longest]
        self.dropped("idle")
        longest.transport.close()
        return True

    # clients that do not read

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._watch_no_more()

    def _watch(self) -> None:
        self._watch_no_more()
        if self not in self.connections:  # it is lost: a clock would keep it from being forgotten
            return
        self._unsent = self.transport.get_write_buffer_size()
        self._stuck = self.loop.call_later(self.limits.send_s, self._look)

    def _watch_no_more(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _look(self) -> None:
        """End the connection if the client has read nothing since the last look."""
        left = self.transport.get_write_buffer_size()
        if 0 < self._unsent <= left:
            self.dropped("slow_reader")
            self.transport.abort()
        elif left:
            self._watch()

    # clients that do not send

    def _arm(self) -> None:
        self._disarm()
        self._clock = self.loop.call_later(self.limits.receive_s, self._late)

    def _disarm(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _late(self) -> None:
        if self.pipeline or self.flow.read_paused:  # the gateway itself has paused reading
            self._arm()
            return
        seconds = self.limits.receive_s
        self._refuse(408, f"the request did not come within {seconds:g} s", "request_timeout")

    def _refuse(self, status: int, why: str, code: str) -> None:
        """Send an error, unless an answer has begun, and disconnect."""
        if self.transport.is_closing() or self._is_refused:
            return
        self._is_refused = True
        self._disarm()
        self.dropped(code)
        cycle = self.cycle
        is_answered = cycle is not None and cycle.response_complete and cycle.more_body
        if not is_answered and (
            cycle is None or cycle.response_complete or not cycle.response_started
        ):
            problem = ErrorBody(Problem(why, "invalid_request_error", None, code))
            body = msgspec.json.encode(problem)
            retry = b"retry-after: 1\r\n" if status == 503 else b""
            head = (
                b"content-type: application/json\r\nconnection: close\r\n%bcontent-length: %d\r\n"
            )
            self.transport.write(STATUS_LINE[status] + head % (retry, len(body)) + b"\r\n" + body)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self._end)
        else:
            self.transport.close()

    def _end(self) -> None:
        self.transport.close()
        self._watch()


def connection(limits: Gateway, dropped: Dropped) -> type[Connection]:
    """The protocol class of a server with these limits."""

    class Limited(Connection):
        pass

    Limited.limits, Limited.dropped, Limited.idle = limits, staticmethod(dropped), {}
    return Limited
