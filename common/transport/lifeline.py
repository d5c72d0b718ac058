"""The connection that a handshake leaves open: it carries receipts, and its end is a loss."""

import asyncio
import struct
from collections.abc import Callable

from sps2.common.transport.connection import Connection

_RECORD = struct.Struct("<BQ")  # kind, number of a frame
_GOODBYE, _CONSUMED = 1, 2
READ_BYTES = _RECORD.size * 4096

GOODBYE = _RECORD.pack(_GOODBYE, 0)
"""Announces that the accepting side closes. Otherwise that side sends only receipts."""


def receipt(number: int) -> bytes:
    """The receipt for frame `number` of the link, which was consumed."""
    return _RECORD.pack(_CONSUMED, number)


Received = Callable[[int], bool]
"""Called with the number of each receipt; returns False if there is no such frame."""


def no_receipts(number: int) -> bool:
    """For a connection over which no frames are sent."""
    return False


class Lifeline:
    """Watches a connection.

    Args:
        ended: called once when the other side closes or breaks the connection, with the reason and
            whether it had said goodbye; not after `close`.
        received: called for each receipt.
    """

    def __init__(
        self,
        connection: Connection,
        ended: Callable[[str, bool], None],
        received: Received = no_receipts,
    ) -> None:
        self._connection = connection
        self._ended = ended
        self._received = received
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._came = b""
        self._leaving = bytearray()
        self._loop.add_reader(connection.fileno(), self._readable)

    def write(self, data: bytes) -> None:
        """Send records to the other side; those that cannot leave now leave later."""
        if self._closed:
            return
        idle = not self._leaving
        self._leaving += data
        if idle:
            self._write()
            if self._leaving and not self._closed:
                self._loop.add_writer(self._connection.fileno(), self._writable)

    def goodbye(self) -> None:
        """Announce to the other side that this side will close."""
        self.write(GOODBYE)

    def close(self) -> None:
        """Close the connection; `ended` is not called any more."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._connection.fileno())
            self._loop.remove_writer(self._connection.fileno())
            self._connection.close()

    def _write(self) -> None:
        try:
            del self._leaving[: self._connection.send(self._leaving)]
        except BlockingIOError:
            return
        except OSError:
            self._leaving.clear()  # the peer is gone: reading will report it

    def _writable(self) -> None:
        self._write()
        if not self._leaving:
            self._loop.remove_writer(self._connection.fileno())

    def _readable(self) -> None:
        try:
            data = self._connection.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(f"the connection broke: {error}", False)
            return
        if not data:
            self._ended("the connection ended without a goodbye", False)
            return
        data = self._came + data
        whole = len(data) - len(data) % _RECORD.size
        self._came = data[whole:]
        for kind, number in _RECORD.iter_unpack(data[:whole]):
            if self._closed:
                return
            if kind == _GOODBYE:
                self._ended("it closed", True)
                return
            if kind != _CONSUMED or not self._received(number):
                self._ended("it sent a receipt for nothing that was sent", False)
                return
