"""The connection that a handshake leaves open: its end is a notice of a lost peer."""

import asyncio
from collections.abc import Callable
from socket import socket

GOODBYE = b"\x01"
"""All that the accepting side of a connection ever says after the handshake."""


class Lifeline:
    """Watches a connected non-blocking socket.

    Args:
        ended: called once when the other side closes or breaks it, with why, and whether it had
            said goodbye; not after `close`.
    """

    def __init__(self, connection: socket, ended: Callable[[str, bool], None]) -> None:
        self._socket = connection
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._loop.add_reader(connection.fileno(), self._readable)

    def goodbye(self) -> None:
        """Tell the other side that this side will close."""
        try:
            self._socket.send(GOODBYE)
        except OSError:
            return  # it is gone already

    def close(self) -> None:
        """Close the connection."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(64)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(f"the connection broke: {error}", False)
            return
        if data == GOODBYE:
            self._ended("it closed", True)
        else:
            self._ended("the connection ended without a goodbye", False)
