"""One connection of the control bus, from connect to loss: a DEALER socket and its calls."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import zmq
import zmq.asyncio

from sps2.common.bus import curve, wire
from sps2.common.bus.mailbox import Mailbox, monitored
from sps2.common.bus.pending import Items, Pending
from sps2.common.bus.wire import Kind
from sps2.common.config import Bus
from sps2.common.errors import Invalid, PeerLost
from sps2.common.keys import Key

SEND_QUEUE = 1 << 15
HEADER_ROOM_BYTES = 1 << 20


class Link:
    """A DEALER socket that connects once; when its connection is lost, its calls fail.

    ZeroMQ's reconnecting is off: a message to a server must not reach its next incarnation.
    """

    def __init__(
        self,
        address: str,
        name: str,
        bus: Bus,
        context: zmq.asyncio.Context,
        counters: Counter[str],
        key: Key | None,
    ) -> None:
        self.is_lost = False
        self.calls: dict[int, Pending] = {}
        self._name = name
        self._bus = bus
        self._counters = counters
        self._ids = itertools.count(1)
        self._awaits_pong = False
        self._lost = asyncio.Event()
        self._socket = zmq.Socket(context, zmq.DEALER)
        self._socket.linger = 0
        self._socket.immediate = True
        self._socket.reconnect_ivl = -1
        self._socket.sndhwm = SEND_QUEUE
        self._socket.maxmsgsize = bus.max_message_bytes + HEADER_ROOM_BYTES
        curve.dial(self._socket, key)
        self._events = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_CLOSED
        )
        self._socket.connect(address)
        self._mail = Mailbox(self._socket, self._take, counters)

    async def connect(self) -> int:
        """Wait for the end of the handshake: HANDSHAKE_SUCCEEDED, or another `zmq.Event`."""
        return await monitored(self._events)

    async def live(self) -> None:
        """Carry frames until the connection is lost."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in (self._watch(), self._heartbeat())]
            await self._lost.wait()
            for task in tasks:
                task.cancel()

    def lose(self, why: str) -> None:
        """Give up the connection: every call over it raises PeerLost."""
        if self.is_lost:
            return
        self.is_lost = True
        self._lost.set()
        for pending in self.calls.values():
            pending.fail(PeerLost(self._name, f"{self._name} was lost: {why}"))
        self.calls.clear()

    def close(self) -> None:
        self.lose("the connection was closed")
        self._socket.disable_monitor()
        self._events.close(0)
        self._mail.close()

    @contextmanager
    def open(self, method: str, body: bytes, pending: Pending, deadline_ms: int) -> Iterator[None]:
        """Send a call; leaving the block before the call ends cancels it."""
        call = next(self._ids)
        self.calls[call] = pending
        self._send(Kind.CALL, call, body, method, deadline_ms, pending.window)
        if isinstance(pending, Items):
            pending.grant = lambda items: self._send(Kind.CREDIT, call, credit=items)
        try:
            yield
        finally:
            if self.calls.pop(call, None) is not None:
                self._send(Kind.CANCEL, call)

    def _send(
        self,
        kind: Kind,
        call: int = 0,
        body: bytes = b"",
        method: str = "",
        deadline_ms: int = 0,
        credit: int = 0,
    ) -> None:
        if self.is_lost:
            return
        frames = [wire.pack_header(kind, call, method, deadline_ms, credit), body]
        if self._mail.send(frames) is not None:
            self.lose("it takes no more messages")

    async def _watch(self) -> None:
        await monitored(self._events)
        self._mail.drain()
        self.lose("it disconnected")

    async def _heartbeat(self) -> None:
        missed = 0
        while True:
            await asyncio.sleep(self._bus.heartbeat_s)
            if not self.calls:
                self._awaits_pong = False
                continue
            missed = missed + 1 if self._awaits_pong else 0
            if missed >= self._bus.missed_heartbeats:
                self.lose(f"it was silent for {missed} heartbeats")
            self._awaits_pong = True
            self._send(Kind.PING)

    def _take(self, frames: list[zmq.Frame]) -> None:
        self._awaits_pong = False
        try:
            head, body = (frame.bytes for frame in frames)
            header = wire.unpack_header(head)
        except (ValueError, Invalid):
            self._counters["bad_frames"] += 1
            return
        if header.version != wire.VERSION:
            self._counters["bad_versions"] += 1
            if pending := self.calls.pop(header.call, None):
                theirs, ours = header.version, wire.VERSION
                pending.fail(Invalid(f"{self._name} speaks bus version {theirs}, this is {ours}"))
            return
        if header.kind is Kind.GOODBYE:
            self.lose("it is shutting down")
            return
        pending = self.calls.get(header.call)
        if pending is not None and pending.deliver(header.kind, body):
            del self.calls[header.call]
