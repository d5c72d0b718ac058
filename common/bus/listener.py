"""The bound socket of a server, and the events of its monitor."""

import asyncio
import errno
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

import zmq
import zmq.asyncio

from sps2.common.bus.curve import Audience, Authenticator
from sps2.common.bus.mailbox import Mailbox, monitored
from sps2.common.config import Bus
from sps2.common.errors import Invalid

HEADER_ROOM_BYTES = 1 << 20
"""A message this far over the size limit still gets an error; a larger one cuts the connection."""
LINGER_MS = 1000
"""For what was sent, after the socket is closed: on a busy machine it takes its time."""
UNBIND_S = 1.0

EVENTS = (
    zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Listener:
    """A ROUTER socket. It refuses to send to unknown peers and to those with `unsent` queued.

    `disconnected` is set when any connection is lost.
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
        self._authenticator = Authenticator(bus, counters)
        self._owns_context = context is None
        self._context = context or zmq.asyncio.Context()
        self._audience = audience
        self._authenticator.attend(self._context)
        self._mail: Mailbox | None = None
        self._socket = zmq.Socket(self._context, zmq.ROUTER)
        self._socket.router_mandatory = True
        self._socket.linger = LINGER_MS
        self._socket.maxmsgsize = bus.max_message_bytes + HEADER_ROOM_BYTES
        self._socket.sndhwm = unsent
        self._authenticator.guard(self._socket, audience)
        self._events = self._socket.get_monitor_socket(EVENTS)

    def bind(self, address: str) -> str:
        """Listen, and return the bound address.

        Raises:
            Invalid: the address cannot be bound; the sockets are closed, the message says why.
        """
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            why = "the port is in use" if error.errno == errno.EADDRINUSE else str(error)
            raise Invalid(f"cannot listen on {address}: {why}") from error
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def open(self, take: Callable[[list[bytes]], None]) -> None:
        """Begin to pass messages to `take` as lists of frames, the caller's name first."""

        def arrive(frames: list[zmq.Frame]) -> None:
            if self._authenticator.admits(frames, self._audience):
                take([frame.bytes for frame in frames])

        self._mail = Mailbox(self._socket, arrive, self._counters)

    def send(self, frames: Sequence[bytes]) -> zmq.ZMQError | None:
        """Queue a message without waiting, once open; returns the error if it cannot be queued."""
        assert self._mail is not None
        return self._mail.send(frames)

    async def admit(self) -> None:
        """Run the authenticator."""
        await self._authenticator.run()

    async def watch(self) -> None:
        """Handle the monitor's events: set `disconnected`, count, and end `unbound`."""
        while True:
            event = await monitored(self._events)
            if event == zmq.Event.CLOSED:
                self._unbound.set()
            elif event == zmq.Event.DISCONNECTED:
                self._counters["disconnects"] += 1
                self.disconnected.set()
            else:
                self._counters["bad_handshakes"] += 1

    def unbind(self) -> None:
        """Accept no more connections; ZeroMQ may end those that there are."""
        self._socket.unbind(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    async def unbound(self) -> None:
        """Wait until the port can be bound again, for at most UNBIND_S; `watch` must be running."""
        with suppress(TimeoutError):
            async with asyncio.timeout(UNBIND_S):
                await self._unbound.wait()

    def close(self) -> None:
        self._socket.disable_monitor()
        self._events.close(0)
        if self._mail is not None:
            self._mail.close()
        self._socket.close()
        self._authenticator.close()
        if self._owns_context:
            self._context.term()
