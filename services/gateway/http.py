"""Serves an ASGI application inside a loop that has other work too."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from sps2.common.errors import Invalid

GRACE_S = 3
BACKLOG = 1024


class _Server(uvicorn.Server):
    """Leaves signals to the process that it is a part of."""

    def capture_signals(self) -> Any:
        return nullcontext()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks one. Raises Invalid if the address cannot be had."""
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


@asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    """Answer HTTP on `listener` while the block runs; then end what is in work, and close it."""
    server = _Server(
        uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=65,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    with listener:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve([listener]))
            try:
                yield
            finally:
                server.should_exit = True
