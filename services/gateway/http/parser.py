"""Reads HTTP/1.1, also from clients that offer another protocol."""

from typing import Protocol

import httptools

_OFFER = frozenset({b"connection", b"upgrade", b"http2-settings"})


class Reader(Protocol):
    """What httptools calls back, with what it has told of the request in hand."""

    url: bytes
    headers: list[tuple[bytes, bytes]]


class Parser:
    """httptools' parser, for which an offer to upgrade does not end the request.

    An offer may be ignored (RFC 9110, 7.8), and the JDK's client makes one with every first
    request. httptools takes what follows such a head for the other protocol, so here the request is
    read again without the offer. What it calls back for the head before that must be ignored by who
    is called: `is_offered` is true meanwhile.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._parser = self._new()

    @property
    def is_offered(self) -> bool:
        return bool(self._parser.should_upgrade()) and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        """Raises httptools.HttpParserError if it is no HTTP."""
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
        # so that a client that says `connection: close` and sends more is answered all the same
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
