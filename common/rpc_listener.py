"""The bound socket of a server, and what its monitor tells."""

import asyncio
import errno
from collections import Counter
from contextlib import suppress

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from sps2.common.config import Bus
from sps2.common.curve import Audience, Porter
from sps2.common.errors import Invalid

HEADER_ROOM_BYTES = 1 << 20
"""Connections that send more than this over the limit are cut; less is answered with an error."""
LINGER_MS = 200
UNBIND_S = 1.0

EVENTS = (
    zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Listener:
    """A ROUTER that refuses to send to whom it does not know or who has `unsent` messages waiting.

    `disconnected` is set when some connection is lost.
    """

    def __init__(
        self,
        bus: Bus,
        context: zmq.asyncio.Context | None,
        counters: Counter[str],
        unsent: int,
        audience: Audience,
    ) -> None:
        self.disconnected = asyncio.Event()
        self._unbound = asyncio.Event()
        self._counters = counters
        self._porter = Porter(bus, counters)
        self._owns_context = context is None
        self._context = context or zmq.asyncio.Context()
        self._audience = audience
        self._porter.attend(self._context)
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.router_mandatory = True
        self.socket.linger = LINGER_MS
        self.socket.maxmsgsize = bus.max_message_bytes + HEADER_ROOM_BYTES
        self.socket.sndhwm = unsent
        self._porter.guard(self.socket, audience)
        self._events = self.socket.get_monitor_socket(EVENTS)

    def bind(self, address: str) -> str:
        """Listen; the bound address.

        Raises:
            Invalid: it cannot be bound (the sockets are closed then); the message says why.
        """
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            why = "the port is in use" if error.errno == errno.EADDRINUSE else str(error)
            raise Invalid(f"cannot listen on {address}: {why}") from error
        return self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    async def receive(self) -> list[bytes]:
        """The next message."""
        return await self._porter.receive(self.socket, self._audience)

    async def admit(self) -> None:
        """Let those connect who may."""
        await self._porter.run()

    async def watch(self) -> None:
        """Turn the monitor's events into `disconnected`, counts, and the end of `unbound`."""
        while True:
            event = (await recv_monitor_message(self._events))["event"]
            if event == zmq.Event.CLOSED:
                self._unbound.set()
            elif event == zmq.Event.DISCONNECTED:
                self._counters["disconnects"] += 1
                self.disconnected.set()
            else:
                self._counters["bad_handshakes"] += 1

    def unbind(self) -> None:
        """Take no more connections; those there are stay."""
        self.socket.unbind(self.socket.getsockopt_string(zmq.LAST_ENDPOINT))

    async def unbound(self) -> None:
        """Wait until another may bind the port; `watch` must be running."""
        with suppress(TimeoutError):
            async with asyncio.timeout(UNBIND_S):
                await self._unbound.wait()

    def close(self) -> None:
        self.socket.disable_monitor()
        self._events.close(0)
        self.socket.close()
        self._porter.close()
        if self._owns_context:
            self._context.term()
