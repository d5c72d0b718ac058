"""Drives an asyncio protocol over an encrypted connection, as the loop does over a plain one."""

import asyncio

from sps2.common.transport.connection import Connection

TURN_BYTES = 1 << 20
"""Maximum of bytes read in one turn of the loop, so that other tasks get theirs."""


class TlsTransport(asyncio.Transport):
    """Reads into the protocol's buffers, decrypting; writes little, and keeps what cannot leave."""

    def __init__(self, connection: Connection, protocol: asyncio.BufferedProtocol) -> None:
        super().__init__()
        self._connection = connection
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._leaving = bytearray()
        self._loop.add_reader(connection.fileno(), self._read)
        protocol.connection_made(self)
        self._loop.call_soon(self._read)  # what came with the handshake shows on no descriptor

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed:
            return
        is_idle = not self._leaving
        self._leaving += data
        if is_idle:
            self._write()
            if self._leaving:
                self._loop.add_writer(self._connection.fileno(), self._write)

    def close(self) -> None:
        """Close at once; the protocol is told nothing."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._connection.fileno())
            self._loop.remove_writer(self._connection.fileno())
            self._connection.close()

    def abort(self) -> None:
        self.close()

    def _write(self) -> None:
        try:
            while self._leaving:
                del self._leaving[: self._connection.send(self._leaving)]
        except BlockingIOError:
            return
        except OSError:
            self._leaving.clear()  # the peer is gone: reading will report it
        self._loop.remove_writer(self._connection.fileno())

    def _read(self) -> None:
        left = TURN_BYTES
        while left > 0 and not self._closed:
            try:
                nbytes = self._connection.recv_into(memoryview(self._protocol.get_buffer(-1)))
            except BlockingIOError:
                return
            except OSError as error:
                self._lost(error)
                return
            if not nbytes:
                self._lost(None)
                return
            self._protocol.buffer_updated(nbytes)
            left -= nbytes
        if not self._closed and self._connection.has_more():
            self._loop.call_soon(self._read)

    def _lost(self, error: OSError | None) -> None:
        self.close()
        self._protocol.connection_lost(error)
