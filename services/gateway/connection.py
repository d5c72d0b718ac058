"""One HTTP connection, within bounds: how many there are, how long and how large a request is."""

import asyncio

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sps2.common.api import ErrorBody, Problem
from sps2.common.config import Gateway


class Connection(HttpToolsProtocol):
    """uvicorn's, with limits that it has not. Who is over one is told so, and disconnected."""

    limits = Gateway()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._clock: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head_bytes = 0
        super().connection_made(transport)
        most = self.limits.max_connections
        if len(self.connections) > most:
            self._refuse(503, f"there are {most} connections already", "too_many_connections")
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._clock is None and (self.cycle is None or self.cycle.response_complete):
            self._arm()
        self._head_bytes += len(data) if self._in_head else 0
        super().data_received(data)
        if self._in_head and self._head_bytes > self.limits.max_header_bytes:
            most = self.limits.max_header_bytes
            self._refuse(431, f"the headers are over {most} bytes", "headers_too_large")

    def on_message_begin(self) -> None:
        self._arm()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._arm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        self._disarm()
        super().on_message_complete()

    def _arm(self) -> None:
        self._disarm()
        self._clock = self.loop.call_later(self.limits.receive_s, self._late)

    def _disarm(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _late(self) -> None:
        if self.pipeline:  # it is not read on before those before it are answered
            self._arm()
            return
        seconds = self.limits.receive_s
        self._refuse(408, f"the request did not come within {seconds:g} s", "request_timeout")

    def _refuse(self, status: int, why: str, code: str) -> None:
        """Answer, unless an answer has begun, and disconnect."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            told = ErrorBody(Problem(why, "invalid_request_error", None, code))
            body = msgspec.json.encode(told)
            head = (
                b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            )
            self.transport.write(STATUS_LINE[status] + head % len(body) + body)
        self.transport.close()


def connection(limits: Gateway) -> type[Connection]:
    """The protocol class of a server with these limits."""

    class Limited(Connection):
        pass

    Limited.limits = limits
    return Limited
