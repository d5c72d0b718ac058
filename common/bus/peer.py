"""Typed calls between services over ZeroMQ: `Peer` calls, `Server` answers."""

import asyncio
import logging
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import TypeVar

import zmq
import zmq.asyncio

from sps2.common import keys
from sps2.common.bus import curve, wire
from sps2.common.bus.link import Link
from sps2.common.bus.pending import Answer, Items, unpack_answer
from sps2.common.bus.probe import knock, require_known, stranger, unanswered
from sps2.common.bus.server import Server
from sps2.common.config import Bus
from sps2.common.errors import Cancelled, Internal, Invalid, PeerLost, Refused
from sps2.common.messages import Request, Stream

__all__ = ["Peer", "Server"]

log = logging.getLogger(__name__)

R = TypeVar("R")
I = TypeVar("I")  # noqa: E741

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0
CONNECT_S = 5.0


class Peer:
    """A service at `address`. It is connected at the first call, and again after every loss.

    While it cannot be reached, calls wait. When it is lost, calls in work raise PeerLost and later
    ones wait for its return. `close` ends waiting calls with PeerLost. While the service refuses
    this side's key, or lack of one, calls raise Invalid; while something else answers at the
    address, they raise PeerLost. Handshakes that break off count as a refusal until the first
    that succeeds, and as a loss from then on.

    Args:
        connect_s: how long one call waits for a connection before it raises PeerLost; the host's
            name must be known then, too. None waits for as long as the call's deadline allows.

    Raises:
        Invalid: `address` is malformed, or the bus's keys cannot be read.
    """

    def __init__(
        self,
        address: str,
        bus: Bus,
        name: str = "",
        context: zmq.asyncio.Context | None = None,
        *,
        max_calls: int = 2048,
        window: int = wire.WINDOW,
        connect_s: float | None = None,
    ) -> None:
        match = re.fullmatch(r"tcp://\S+:(\d{1,5})|ipc://\S+", address)
        if match is None or int(match[1] or 0) >= 1 << 16:
            raise Invalid(f"{address!r} is no address of the bus; try tcp://HOST:PORT")
        self.address = address
        self.name = name or address
        self.counters: Counter[str] = Counter()
        self._bus = bus
        self._key = keys.of(bus)
        self._broken_handshakes = 0
        self._is_known = False
        self._refusal: Invalid | PeerLost | None = None
        self._context = context
        self._max_calls = max_calls
        self._window = window
        self._connect_s = connect_s
        self._calls = 0
        self._link: Link | None = None
        self._changed = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def calls(self) -> int:
        """Number of calls in work, those that wait for a connection included."""
        return self._calls

    @property
    def is_connected(self) -> bool:
        """Whether a call would be sent at once."""
        return self._link is not None and not self._link.is_lost

    @property
    def is_turned_away(self) -> bool:
        """Whether the service refuses this side's key."""
        return isinstance(self._refusal, Invalid)

    async def connect(self) -> None:
        """Wait until the service is connected. Raises as `call` does where it cannot be."""
        await self._connected()

    async def call(self, request: Request[R], deadline_s: float | None = None) -> R:
        """Send a request and wait for the reply. Cancelling the caller's task cancels the handler.

        Raises:
            Cancelled: the deadline passed, here or at the server.
            PeerLost: the connection broke, or the server fell silent.
            Refused: too many calls in work, here or at the server.
            ServiceError: what the handler raised.
        """
        method, body = type(request).__name__, self._pack(request)
        try:
            with self._admit():
                async with asyncio.timeout(deadline_s) as clock:
                    link = await self._connected()
                    answer = Answer()
                    with link.open(method, body, answer, _left_ms(clock)):
                        reply = await answer.body()
        except TimeoutError:
            raise Cancelled(
                f"{method} to {self.name} passed its deadline of {deadline_s} s"
            ) from None
        kind: type[R] = wire.answer_type(type(request))
        return unpack_answer(reply, kind)

    def stream(self, request: Stream[I]) -> AbstractAsyncContextManager[AsyncIterator[I]]:
        """Receive a stream of items while the block runs; leaving it early cancels the handler.

        The server may be at most `window` items ahead of the consumer. The iteration raises a
        loss or the handler's error after the items that came before it; other errors as in `call`.
        """
        return self._stream(request)

    async def close(self) -> None:
        """Disconnect; calls in work raise PeerLost."""
        self._closed = True
        self._changed.set()
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)

    @asynccontextmanager
    async def _stream(self, request: Stream[I]) -> AsyncIterator[AsyncIterator[I]]:
        method, body = type(request).__name__, self._pack(request)
        with self._admit():
            link = await self._connected()
            items = Items(wire.answer_type(type(request)), self._window)
            with link.open(method, body, items, 0):
                yield items

    def _pack(self, request: object) -> bytes:
        body = wire.pack(request)
        if len(body) > self._bus.max_message_bytes:
            limit = self._bus.max_message_bytes
            raise Invalid(f"a message of {len(body)} bytes is over {limit}")
        return body

    @contextmanager
    def _admit(self) -> Iterator[None]:
        if self._calls >= self._max_calls:
            raise Refused(f"too many calls to {self.name} in work")
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    async def _connected(self) -> Link:
        if self._connect_s is None or self.is_connected:
            return await self._found()
        await require_known(self.address, self.name)
        try:
            async with asyncio.timeout(self._connect_s):
                return await self._found()
        except TimeoutError:
            found = await knock(self.address)
            raise unanswered(self.address, self.name, found, self._connect_s) from None

    async def _found(self) -> Link:
        while not self._closed:
            if self._link is not None and not self._link.is_lost:
                return self._link
            if self._runner is None:
                self._runner = asyncio.create_task(self._run(), name=f"peer {self.name}")
                self._runner.add_done_callback(self._ended)
            if self._refusal is not None:
                raise type(self._refusal)(*self._refusal.args)
            runner = self._runner
            self._changed.clear()
            await self._changed.wait()
            if runner.done() and not self._closed:
                raise Internal(f"the connection to {self.name} failed by a fault of this side")
        raise PeerLost(self.name, f"the connection to {self.name} was closed")

    def _ended(self, runner: asyncio.Task[None]) -> None:
        """After a fault of the runner, waiting calls fail; the next call starts another."""
        if not runner.cancelled() and (error := runner.exception()) is not None:
            log.error("the connection to %s failed", self.name, exc_info=error)
            self._runner = None
            self._changed.set()

    async def _run(self) -> None:
        context = self._context or zmq.asyncio.Context()
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                if await self._live(context):
                    pause_s = FIRST_PAUSE_S
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        finally:
            if self._context is None:
                context.term()

    async def _live(self, context: zmq.asyncio.Context) -> bool:
        try:
            link = Link(self.address, self.name, self._bus, context, self.counters, self._key)
        except zmq.ZMQError as error:
            log.warning("cannot connect to %s: %s", self.name, error)
            return False
        connected = False
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_S):
                    connected = await self._welcome(await link.connect())
            if connected:
                self._link = link
                self._changed.set()
                await link.live()
                self.counters["losses"] += 1
                log.info("%s was lost", self.name)
        finally:
            self._link = None
            link.close()
        return connected

    async def _welcome(self, event: int) -> bool:
        """Whether a handshake that ended with `event` made a connection.

        A handshake that breaks off means that keys do not match, or that something between, for
        example a proxy, accepts for a service that is away. If keys have matched before, it is
        the latter.
        """
        connected = event == zmq.Event.HANDSHAKE_SUCCEEDED
        self._is_known = self._is_known or connected
        broken = event in curve.BROKEN and not self._is_known
        self._broken_handshakes = self._broken_handshakes + 1 if broken else 0
        refusal: Invalid | PeerLost | None = curve.refusal(
            event, self.name, self._key, self._broken_handshakes
        )
        if refusal is not None and self._refusal is not None:
            refusal = self._refusal
        elif refusal is not None:
            if broken:
                refusal = stranger(self.address, self.name, await knock(self.address)) or refusal
            log.info("%s", refusal)
        self._refusal = refusal
        self._changed.set()
        return connected


def _left_ms(clock: asyncio.Timeout) -> int:
    when = clock.when()
    if when is None:
        return 0
    left_ms = 1000 * (when - asyncio.get_running_loop().time())
    return int(min(max(1.0, left_ms), wire.MAX_DEADLINE_MS))
