"""The control bus: its server, its client and telemetry, over real sockets on loopback."""

import asyncio
import itertools
import random
from typing import Any, Self

import zmq
import zmq.asyncio

from sps2.common.bus import wire
from sps2.common.bus.peer import Peer, Server
from sps2.common.bus.telemetry import Heartbeat, Hub, Subscriber
from sps2.common.bus.wire import Kind
from sps2.common.config import Bus
from sps2.common.errors import ServiceError
from sps2.services.gateway.http.problems import ErrorReport
from sps2.services.gateway.monitoring.federation import Federation

from ..common.bus.service import Count, Echo, Service
from . import mutate
from .target import Pieces, Target

PATIENT = Bus(heartbeat_s=60.0)
LOCAL = "tcp://127.0.0.1:0"
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


def message(kind: Kind, call: int, method: str, value: object) -> Pieces:
    return [wire.pack_header(kind, call, method, 0, 8), wire.pack(value)]


def changed_message(dice: random.Random, frames: Pieces) -> Pieces:
    """A message with changed frames, or with too many or too few of them."""
    frames = list(frames)
    how = dice.random()
    if how < 0.1:
        return frames * dice.choice((2, 3, 50))
    if how < 0.2:
        return frames[: dice.randrange(1, len(frames) + 1)]
    place = dice.randrange(len(frames))
    if dice.random() < 0.5:
        frames[place] = mutate.changed(dice, frames[place])
    else:
        value = wire._unpack(frames[place])
        frames[place] = mutate.packed(mutate.changed_value(dice, value, binary=True))
    return frames


class BusServer(Target):
    """A server: frames of a ZeroMQ client, and bytes of a client that speaks no ZeroMQ."""

    name = "bus"
    said = ()

    async def __aenter__(self) -> Self:
        self._service = Service()
        self._server = Server(self._service, PATIENT)
        self._address = await self._server.start(LOCAL)
        self._context = zmq.asyncio.Context()
        self._dealer = self._dialled()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._dealer.close(0)
        self._context.term()
        await self._server.close()

    def _dialled(self) -> zmq.asyncio.Socket:
        dealer = self._context.socket(zmq.DEALER)
        dealer.connect(self._address)
        return dealer

    def case(self, dice: random.Random) -> Pieces:
        plain = dice.choice(
            (
                message(Kind.CALL, 7, "Echo", Echo("text", b"data")),
                message(Kind.CALL, 8, "Count", Count(3)),
                message(Kind.CREDIT, 8, "", None),
                message(Kind.CANCEL, 8, "", None),
                message(Kind.PING, 0, "", None),
            )
        )
        if dice.random() < 0.7:
            return [b"frames", *changed_message(dice, plain)]
        parts = [b"\x01", b"\x00"]
        framed = [
            flag + bytes([len(frame)]) + frame for flag, frame in zip(parts, plain, strict=True)
        ]
        stream = GREETING + b"\x04" + bytes([len(READY)]) + READY + b"".join(framed)
        return [b"bytes", mutate.changed(dice, stream)]

    async def feed(self, pieces: Pieces) -> None:
        kind, *frames = pieces
        if kind == b"bytes":
            await _said_to(self._address, frames[0])
            return
        await self._dealer.send_multipart(frames)
        await self._dealer.send_multipart([wire.pack_header(Kind.PING), b""])
        while True:
            head, *_ = await self._dealer.recv_multipart()
            if wire.unpack_header(head).kind is Kind.PONG:
                return

    async def check(self) -> None:
        """A client that leaves leaves nothing behind, and others are answered."""
        self._dealer.close(0)
        while self._server.calls:
            await asyncio.sleep(0.01)
        assert not self._server.counters["faults"]
        async with Calling(self._address) as peer:
            assert (await peer.call(Echo("still"))).text == "still"
        self._dealer = self._dialled()


class Calling:
    """A client for one block."""

    def __init__(self, address: str) -> None:
        self._peer = Peer(address, PATIENT, "fuzzed")

    async def __aenter__(self) -> Peer:
        return self._peer

    async def __aexit__(self, *error: object) -> None:
        await self._peer.close()


async def _said_to(address: str, data: bytes) -> bytes:
    """Send bytes to a listener, and nothing more; returns all that it sends back."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    except OSError:  # it has hung up already
        return b""
    finally:
        writer.close()


class BusClient(Target):
    """A client, whose server answers anything."""

    name = "bus-client"
    said = (ServiceError,)

    async def __aenter__(self) -> Self:
        self._context = zmq.asyncio.Context()
        self._router = self._context.socket(zmq.ROUTER)
        port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self._peer = Peer(f"tcp://127.0.0.1:{port}", PATIENT, "fuzzed")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._peer.close()
        self._router.close(0)
        self._context.term()

    def case(self, dice: random.Random) -> Pieces:
        refused: Any = (dice.choice(("Invalid", "Refused", "PeerLost", "Preempted")), ["why", 1.5])
        plain = dice.choice(
            (
                message(Kind.REPLY, 1, "", {"type": "Text", "text": "a", "data": b"b"}),
                message(Kind.ITEM, 1, "", {"type": "Number", "value": 1}),
                message(Kind.END, 1, "", None),
                message(Kind.ERROR, 1, "", refused),
                message(Kind.ERROR, 1, "", refused),
                message(Kind.PONG, 1, "", None),
            )
        )
        return [dice.choice((b"call", b"stream")), *changed_message(dice, plain)]

    async def feed(self, pieces: Pieces) -> None:
        kind, *frames = pieces
        asked = asyncio.create_task(self._call() if kind == b"call" else self._stream())
        try:
            while True:
                name, head, _ = await self._router.recv_multipart()
                header = wire.unpack_header(head)
                if header.kind is Kind.CALL:
                    break
            await self._router.send_multipart([name, *_addressed(frames, header.call)])
            last = [wire.pack_header(Kind.ERROR, header.call), wire.pack(("Cancelled", ["last"]))]
            await self._router.send_multipart([name, *last])
            await asked
        except ServiceError as error:
            ErrorReport(error)
            raise
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    async def _call(self) -> None:
        await self._peer.call(Echo("a"))

    async def _stream(self) -> None:
        async with self._peer.stream(Count(3)) as items:
            async for _ in items:
                pass


def _addressed(frames: Pieces, call: int) -> Pieces:
    """The frames, as an answer to this call if the header can be read."""
    try:
        header = wire._unpack(frames[0])
        if isinstance(header, list) and len(header) > 2 and header[2] == 1:
            header[2] = call
            return [mutate.packed(header), *frames[1:]]
    except ServiceError:
        pass
    return frames


class Telemetry(Target):
    """The telemetry hub, its listeners, and the metrics that are made of what they hear."""

    name = "telemetry"
    said = ()

    async def __aenter__(self) -> Self:
        self._hub = Hub(LOCAL, LOCAL, PATIENT)
        entry, leave = await self._hub.start()
        self._addresses = entry, leave
        self._context = zmq.asyncio.Context()
        self._publisher = self._context.socket(zmq.PUB)
        self._publisher.connect(entry)
        self._events = Subscriber(leave, PATIENT)
        self._metrics = Federation(PATIENT)
        self._numbers = itertools.count()
        await self._through()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._events.close()
        self._publisher.close(0)
        self._context.term()
        await self._hub.close()

    def case(self, dice: random.Random) -> Pieces:
        heartbeat: dict[str, Any] = {
            "type": "Heartbeat",
            "service": "mixed-0",
            "pid": 1,
            "at_s": 1.0,
            "rss_bytes": 1 << 20,
            "counters": {"kv_pages": 3.0, "kv_sent": 4.0},
            "links": [{"target": "mixed-1", "sent_bytes": 3, "frames_sent": 1}],
            "tokens": {"r": 1},
        }
        event = {"type": "RequestEvent", "request": "r", "stage": "decode", "at_s": 1.0}
        plain = dice.choice((heartbeat, heartbeat, event | {"detail": {"a": 1.0, "b": "c"}}))
        if dice.random() < 0.15:
            return [b"bytes", mutate.changed(dice, GREETING + b"\x00\x02\x01a" + wire.pack(plain))]
        body = mutate.packed(mutate.changed_value(dice, plain, binary=True))
        frames = [mutate.changed(dice, body) if dice.random() < 0.3 else body]
        return [b"frames", *frames * dice.choice((1, 1, 1, 1, 2))]

    async def feed(self, pieces: Pieces) -> None:
        kind, *frames = pieces
        if kind == b"bytes":
            await _said_to(self._addresses[len(frames[0]) % 2], frames[0])
            return
        await self._publisher.send_multipart(frames)
        await self._through()

    async def _through(self) -> None:
        """Wait until an event that is sent now has come, with all that came before it."""
        name = f"last-{next(self._numbers)}"
        last = wire.pack(Heartbeat(name, 1, 1.0, 1))
        while True:
            await self._publisher.send(last)
            try:
                async with asyncio.timeout(0.5):  # the first are lost while sockets connect
                    while True:
                        event = await anext(self._events)
                        if isinstance(event, Heartbeat) and event.service == name:
                            return
                        self._metrics.hear(event)
                        for metric in self._metrics.collect():
                            assert metric.name
            except TimeoutError:
                continue
