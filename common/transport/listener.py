"""The listening socket of a data plane: accepts connections and completes their handshakes."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket

from sps2.common.errors import Invalid
from sps2.common.transport import hello
from sps2.common.transport.connection import Connection
from sps2.common.transport.interfaces import Sink, Stale

HANDSHAKE_S = 5.0
HALF_OPEN = 64
"""Unfinished handshakes at a time; one more evicts the oldest."""

Admit = Callable[[hello.Guest], Awaitable[None]]
"""Takes over a guest with its connection, and answers it; raises Invalid to refuse it."""

_logger = logging.getLogger(__name__)


class Listener:
    """Performs the handshake with every process that connects.

    Args:
        sink: the plane, whose token diallers must know. Its counter "bad_hellos" counts connections
            without a valid handshake, or refused ones.
        admit: called with every guest; it owns the connection once it returns.
    """

    def __init__(self, sink: Sink, admit: Admit) -> None:
        self._sink = sink
        self._admit = admit
        self._server: socket | None = None
        self._half_open: dict[asyncio.Task[None], Connection] = {}
        self._accepting: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int = 0) -> str:
        """Listen on `host`; port 0 is any free port. Returns "host:port"."""
        self._server = socket(AF_INET, SOCK_STREAM)
        self._server.setblocking(False)
        self._server.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        self._server.bind((host, port))
        self._server.listen(HALF_OPEN)
        self._accepting = asyncio.create_task(self._accept(self._server), name="accept links")
        bound_host, bound_port = self._server.getsockname()
        return f"{bound_host}:{bound_port}"

    async def close(self) -> None:
        """Stop listening; unfinished handshakes are closed."""
        tasks = [*self._half_open, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _accept(self, server: socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                link, _ = await loop.sock_accept(server)
            except OSError as error:  # out of file descriptors, or the dialler has left already
                self._sink.counters["accept_errors"] += 1
                _logger.warning("cannot accept a link: %s", error)
                await asyncio.sleep(0.1)
                continue
            if len(self._half_open) >= HALF_OPEN:
                next(iter(self._half_open)).cancel()
            connection = Connection(link)
            task = asyncio.create_task(self._shake(connection), name="handshake")
            self._half_open[task] = connection
            task.add_done_callback(self._finish)

    async def _shake(self, link: Connection) -> None:
        hello.prepare(link.plain)
        async with asyncio.timeout(HANDSHAKE_S):
            guest = await hello.accept(link, self._sink.token, self._sink.identity)
            try:
                await self._admit(guest)
            except Invalid as error:
                generation = error.generation if isinstance(error, Stale) else 0
                await hello.refuse(link, str(error), generation)
                raise

    def _finish(self, task: asyncio.Task[None]) -> None:
        link = self._half_open.pop(task)
        error = None if task.cancelled() else task.exception()
        if not task.cancelled() and error is None:
            return
        link.close()
        self._sink.counters["bad_hellos"] += 1
        expected = error is None or isinstance(error, OSError | Invalid)
        level = logging.INFO if expected else logging.ERROR
        _logger.log(level, "a connection to the data plane was closed: %r", error)
