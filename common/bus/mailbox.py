"""A ZeroMQ socket on an event loop: a callback receives messages, sending is immediate.

`zmq.asyncio` makes a future for each message and polls the socket's events several times around
it. That was a larger part of a call's round trip than ZeroMQ itself.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import zmq
from zmq.backend import Socket as Core
from zmq.utils.monitor import recv_monitor_message

BURST = 64
"""Messages received in a row before other tasks get their turn."""
DONTWAIT, SNDMORE = int(zmq.DONTWAIT), int(zmq.SNDMORE)
EVENTS, POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)

Take = Callable[[list[zmq.Frame]], None]

log = logging.getLogger(__name__)


class Mailbox:
    """Sends and receives the messages of a connected or bound socket while it is open.

    Args:
        take: called on the running loop with the frames of each message. Its exceptions are
            logged, and the next message follows.
        counters: "faults" counts these exceptions.
    """

    def __init__(self, socket: zmq.Socket[Any], take: Take, counters: Counter[str]) -> None:
        self._socket = socket
        self._take = take
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._descriptor = socket.fileno()
        self._is_due = False
        self._loop.add_reader(self._descriptor, self._read)
        self._due()  # messages that came before give no signal

    def send(self, frames: Sequence[bytes]) -> zmq.ZMQError | None:
        """Queue a message without waiting; returns the error if it cannot be queued."""
        *leading, last = frames
        try:
            for frame in leading:
                Core.send(self._socket, frame, DONTWAIT | SNDMORE)
            Core.send(self._socket, last, DONTWAIT)
        except zmq.ZMQError as error:
            return error
        finally:
            self._due()  # sending may have swallowed the signal of a message that came
        return None

    def drain(self) -> None:
        """Receive all messages that have come."""
        while (frames := self._next()) is not None:
            self._give(frames)

    def close(self) -> None:
        """Close the socket and stop receiving. Sent messages may still leave: see `linger`."""
        if not self._socket.closed:
            self._loop.remove_reader(self._descriptor)
            self._socket.close()

    def _due(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._is_due = False
        for _ in range(BURST):
            if self._socket.closed or (frames := self._next()) is None:
                return
            self._give(frames)
        self._due()  # the descriptor is edge-triggered: it does not signal again for the rest

    def _give(self, frames: list[zmq.Frame]) -> None:
        try:
            self._take(frames)
        except Exception:  # what comes after it gives no new signal
            self._counters["faults"] += 1
            log.exception("a message was dropped by a fault")

    def _next(self) -> list[zmq.Frame] | None:
        events: Any = Core.get(self._socket, EVENTS)
        if not events & POLLIN:  # an exception would take longer
            return None
        frames = [Core.recv(self._socket, DONTWAIT, copy=False)]
        while frames[-1].more:
            frames.append(Core.recv(self._socket, DONTWAIT, copy=False))
        return frames


async def monitored(monitor: zmq.Socket[Any]) -> int:
    """Wait for the next `zmq.Event` of a monitor socket of an asyncio context."""
    message: Any = recv_monitor_message(monitor)
    event: int = (await message)["event"]
    return event
