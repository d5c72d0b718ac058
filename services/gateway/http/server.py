"""Serves an ASGI application in an event loop that has other work too."""

import asyncio
import errno
import logging
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import uvicorn
from msgspec.structs import replace
from starlette.types import ASGIApp

from sps2.common.config import Gateway
from sps2.common.errors import Invalid
from sps2.common.keys import read_private
from sps2.services.gateway.http.connection import LINGERING, Dropped, connection

GRACE_S = 3
BACKLOG = 1024
OTHER_DESCRIPTORS = 256
"""Descriptors for links to other services, files and the like."""

log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """uvicorn's server, but the process handles signals itself."""

    def capture_signals(self) -> Any:
        return nullcontext()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. Raises Invalid if binding it fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only for sockets that name their protocol
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        return listener
    except OSError as error:
        listener.close()
        in_use = error.errno == errno.EADDRINUSE
        why = "the port is in use" if in_use else error.strerror or str(error)
        raise Invalid(f"cannot listen on http://{host}:{port}: {why}") from error


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
) -> AsyncIterator[None]:
    """Serve HTTP on `listener` while the block runs; then end all requests and close it.

    Args:
        dropped: called with the reason when the gateway ends a connection.
    """
    server = _Server(
        uvicorn.Config(
            app,
            http=connection(affordable(settings), dropped),
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
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve([listener]))
            try:
                yield
            finally:
                server.should_exit = True
