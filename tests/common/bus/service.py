"""A service with the habits, good and bad, that the tests of the bus need."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import zmq
import zmq.asyncio

from sps2.common.bus import wire
from sps2.common.bus.peer import Peer, Server
from sps2.common.bus.wire import Header, Kind
from sps2.common.config import Bus
from sps2.common.errors import Internal, Invalid, PeerLost, Refused
from sps2.common.messages import Done, Request, Stream, Struct

HANG_S = 60.0
"""No test takes nearly as long; a hang ends as an error."""
PATIENT = Bus(heartbeat_s=20.0)
"""Nobody is lost by silence, however busy the machine."""
HASTY = Bus(heartbeat_s=0.05)


class Text(Struct, frozen=True, tag=True):
    text: str
    data: bytes = b""


class Number(Struct, frozen=True, tag=True):
    value: int


class Echo(Request[Text], frozen=True):
    text: str
    data: bytes = b""


class Hang(Request[Done], frozen=True):
    """Never answered."""

    tag: str = ""


class Fail(Request[Done], frozen=True):
    how: str


class Grow(Request["Text"], frozen=True):
    """Answered with `size` bytes."""

    size: int


class Count(Stream["Number | Text"], frozen=True):
    """Numbers from 0; at `fail_at` an error."""

    stop: int
    fail_at: int = -1


class Keep(Stream[Done], frozen=True):
    """One item, then open for ever."""

    tag: str = ""


class Unknown(Request[Done], frozen=True):
    """Nobody answers this."""


class Service:
    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[str] = []
        self.produced = 0
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def echo(self, request: Echo) -> Text:
        return Text(request.text, request.data)

    async def hang(self, request: Hang) -> Done:
        self.started.append(request.tag)
        try:
            await asyncio.Event().wait()
        finally:
            await self.may_end.wait()
            self.ended.append(request.tag)
        return Done()

    async def fail(self, request: Fail) -> Done:
        match request.how:
            case "refused":
                raise Refused("no room", 3.0)
            case "invalid":
                raise Invalid("wrong", "field")
            case "lost":
                raise PeerLost("decode-7")
            case "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.fail(Fail("refused")))
            case "mixed":
                raise ExceptionGroup("both", [Refused("no"), ValueError("secret")])
            case "cancelled":
                raise asyncio.CancelledError
            case "internal":
                raise Internal("known fault")
        raise ValueError("secret")

    async def grow(self, request: Grow) -> Text:
        return Text("", bytes(request.size))

    async def count(self, request: Count) -> AsyncIterator[Number | Text]:
        try:
            for value in range(request.stop):
                if value == request.fail_at:
                    raise Refused("enough")
                self.produced += 1
                yield Number(value)
        finally:
            await self.may_end.wait()
            self.ended.append("count")

    async def keep(self, request: Keep) -> AsyncIterator[Done]:
        self.started.append(request.tag)
        try:
            yield Done()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            await self.may_end.wait()
            self.ended.append(request.tag)


@asynccontextmanager
async def served(
    bus: Bus = PATIENT, address: str = "tcp://127.0.0.1:0", **settings: Any
) -> AsyncIterator[tuple[Service, Server]]:
    """A running server; leaving the block checks that nothing is left of it."""
    service = Service()
    server = Server(service, bus, **settings)
    async with asyncio.timeout(HANG_S):
        await server.start(address)
        try:
            yield service, server
        finally:
            await server.close()
    assert server.calls == 0
    assert not server._clients


@asynccontextmanager
async def reached(address: str, bus: Bus = PATIENT, **limits: int) -> AsyncIterator[Peer]:
    """A peer; leaving the block checks that no call is left."""
    peer = Peer(address, bus, **limits)
    try:
        yield peer
        assert peer.calls == 0
        assert peer._link is None or not peer._link.calls
    finally:
        await peer.close()


class Raw:
    """A client that sends whatever it is told to."""

    def __init__(self, address: str) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(address)

    async def send(self, *frames: bytes) -> None:
        await self._socket.send_multipart(list(frames))

    async def call(self, message: Any, call: int = 1, **header: int) -> None:
        head = wire.pack_header(Kind.CALL, call, type(message).__name__, **header)
        await self.send(head, wire.pack(message))

    async def receive(self) -> tuple[Header, bytes]:
        head, body = await self._socket.recv_multipart()
        return wire.unpack_header(head), body

    async def error(self) -> tuple[int, Exception]:
        header, body = await self.receive()
        assert header.kind is Kind.ERROR
        return header.call, wire.unpack_error(body)

    def close(self) -> None:
        self._context.destroy(0)


@asynccontextmanager
async def raw(address: str) -> AsyncIterator[Raw]:
    client = Raw(address)
    try:
        yield client
    finally:
        client.close()


@asynccontextmanager
async def raw_server() -> AsyncIterator[tuple[zmq.asyncio.Socket, str]]:
    """A ROUTER that does only what the test makes it do, and its address."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind("tcp://127.0.0.1:0")
    try:
        async with asyncio.timeout(HANG_S):
            yield socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)
    finally:
        context.destroy(0)


@asynccontextmanager
async def background(work: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """A task that the test ends."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
