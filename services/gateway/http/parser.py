"""Reads HTTP/1.1, also from clients that offer another protocol."""

from typing import Protocol

import httptools

_OFFER = frozenset({b"connection", b"upgrade", b"http2-settings"})


class Reader(Protocol):
    """The object that httptools calls back, with what it has parsed of the current request."""

    url: bytes
    headers: list[tuple[bytes, bytes]]


class Parser:
    """httptools' parser, but an offer to upgrade does not end the request.

    A server may ignore the offer (RFC 9110, 7.8); the JDK's client makes one with every first
    request. httptools treats what follows the head as the other protocol, so this parser reads the
    request again without the offer. The reader must ignore the callbacks for the first head:
    `is_offered` is true during them.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._parser = self._new()

    @property
    def is_offered(self) -> bool:
        return bool(self._parser.should_upgrade()) and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        """Parse more bytes. Raises httptools.HttpParserError if they are not HTTP."""
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                if not self.is_offered:
                    raise
                data = self._head() + data[offer.args[0] :]
                self._parser = self._new()

    def get_http_version(self) -> str:
        return str(self._parser.get_http_version())

    def get_method(self) -> bytes:
        return bytes(self._parser.get_method())

    def should_keep_alive(self) -> bool:
        return bool(self._parser.should_keep_alive())

    def should_upgrade(self) -> bool:
        return False

    def _new(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self._reader)
        # so that a client that sends more after `connection: close` still gets its answer
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _head(self) -> bytes:
        version = self.get_http_version().encode()
        head = [b"%b %b HTTP/%b" % (self.get_method(), self._reader.url, version)]
        for name, value in self._reader.headers:
            if name not in _OFFER:
                head.append(name + b": " + value)
            elif name == b"connection" and b"close" in value.lower():
                head.append(b"connection: close")
        return b"\r\n".join([*head, b"", b""])
