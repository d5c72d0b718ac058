"""Serves an ASGI application in an event loop that has other work too."""

import asyncio
import errno
import logging
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import uvicorn
from msgspec.structs import replace
from starlette.types import ASGIApp

from sps2.common.config import Gateway
from sps2.common.errors import Invalid
from sps2.common.keys import read_private
from sps2.services.gateway.http.connection import LINGERING, Connection, Dropped, connection

GRACE_S = 3
BACKLOG = 1024
FIRST_REQUEST_S = 2.0
"""How long a server that takes no more connections waits for the first request of the last ones."""
OTHER_DESCRIPTORS = 256
"""Descriptors for links to other services, files and the like."""

log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """uvicorn's server, but the process handles signals itself."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    def capture_signals(self) -> Any:
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


def bind(host: str, port: int, shared: bool = False) -> socket.socket:
    """A bound socket; port 0 picks a free one. Raises Invalid if the port is taken.

    It gets no connections before `serving` listens on it: a gateway that still starts would let
    them wait, or break them if it cannot start.

    Args:
        shared: whether other gateways bind the port too; the system chooses one that listens for
            each connection.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only for sockets that name their protocol
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        return listener
    except OSError as error:
        listener.close()
        raise _unusable(host, port, error) from error


def _unusable(host: str, port: int, error: OSError) -> Invalid:
    in_use = error.errno == errno.EADDRINUSE
    why = "the port is in use" if in_use else error.strerror or str(error)
    return Invalid(f"cannot listen on http://{host}:{port}: {why}")


def affordable(settings: Gateway) -> Gateway:
    """The settings, with no more connections than this process may have descriptors for."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = descriptors - LINGERING - OTHER_DESCRIPTORS
    if descriptors == resource.RLIM_INFINITY or settings.max_connections <= most:
        return settings
    most = max(1, most)
    log.warning(
        "%d HTTP connections at once at most, not gateway.max_connections = %d: this process may "
        "have %d descriptors (ulimit -n)",
        most,
        settings.max_connections,
        descriptors,
    )
    return replace(settings, max_connections=most)


def require_certificate(settings: Gateway) -> None:
    """Raise Invalid if the certificate or its key cannot be used, or others can read the key."""
    if not settings.tls_key:
        return
    certificate, key = Path(settings.tls_certificate), Path(settings.tls_key)
    try:
        read_private(key)
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except FileNotFoundError as error:
        missing = key if certificate.exists() else certificate
        raise Invalid(f"[gateway] there is no {missing}") from error
    except (ssl.SSLError, OSError) as error:
        raise Invalid(f"[gateway] {certificate} with {key} is no certificate: {error}") from error


@asynccontextmanager
async def serving(
    app: ASGIApp,
    listener: socket.socket,
    settings: Gateway,
    dropped: Dropped = lambda why: None,
) -> AsyncIterator["Front"]:
    """Serve HTTP on `listener`, a bound socket, while the block runs; then end all requests and
    close it.

    Args:
        dropped: called with the reason when the gateway ends a connection.

    Raises:
        Invalid: another process listens on the port since it was bound.
    """
    kind = connection(affordable(settings), dropped)
    server = _Server(
        uvicorn.Config(
            app,
            http=kind,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=65,
            timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=settings.tls_certificate or None,
            ssl_keyfile=settings.tls_key or None,
        )
    )
    with listener:
        try:
            listener.listen(BACKLOG)
        except OSError as error:
            host, port = listener.getsockname()[:2]
            raise _unusable(host, port, error) from error
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve([listener]))
            try:
                yield Front(server, listener, kind)
            finally:
                server.should_exit = True


class Front:
    """The connections of a server."""

    def __init__(self, server: _Server, listener: socket.socket, kind: type[Connection]) -> None:
        self._server = server
        self._listener = listener
        self._kind = kind
        self._arriving: list[asyncio.Task[None]] = []
        self._asked_by_s = 0.0

    async def retire(self) -> None:
        """Take no more connections; those that are there end with their answers.

        Connections that wait to be accepted are served too: the system would break them off.
        """
        await self._server.listens.wait()
        taken = []
        self._listener.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                taken.append(self._listener.accept()[0])
        for server in self._server.servers:
            server.close()
        self._arriving = [asyncio.create_task(self._receive(each)) for each in taken]
        self._kind.is_retired = True
        for each in self._connections():
            each.retire()
        self._asked_by_s = asyncio.get_running_loop().time() + FIRST_REQUEST_S

    def is_idle(self) -> bool:
        """Whether nobody waits for an answer, and no first request is expected any more."""
        connections = self._connections()
        if any(each.is_answering for each in connections):
            return False
        is_late = asyncio.get_running_loop().time() > self._asked_by_s
        comes = any(each.is_new for each in connections) or any(
            not each.done() for each in self._arriving
        )
        return is_late or not comes

    async def _receive(self, connected: socket.socket) -> None:
        config = self._server.config

        def protocol() -> Connection:
            return self._kind(config, self._server.server_state, {})

        connected.setblocking(False)
        with suppress(OSError):
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(protocol, connected, ssl=config.ssl)

    def _connections(self) -> list[Connection]:
        return [*self._server.server_state.connections]  # type: ignore[list-item]
