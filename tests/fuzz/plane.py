"""The data plane over TCP: its listener and its frames, and the side that dials."""

import asyncio
import itertools
import random
import struct
from typing import Any, Self

import msgspec
import torch

from sps2.common import messages
from sps2.common.errors import ServiceError
from sps2.common.transport import frame as frames
from sps2.common.transport import hello
from sps2.common.transport.frame import frame_for
from sps2.common.transport.hello import Challenge, Hello, Refusal, Welcome
from sps2.common.transport.lifeline import GOODBYE, receipt
from sps2.common.transport.ping import Pings
from sps2.common.transport.plane import Plane
from sps2.common.transport.proof import MAC_BYTES, Proof
from sps2.common.transport.tcp_link import FRAME, PREFIX

from . import mutate
from .target import Pieces, Target

OPENING = struct.Struct("<4sHH")
NAMES = 200
SILENCE_S = 0.1
LEFT_S = 0.005
"""A dialler that has said all waits so long for an answer before it leaves."""


def opening(body: bytes) -> bytes:
    return OPENING.pack(hello.MAGIC, hello.VERSION, min(len(body), 0xFFFF))


def changed_struct(dice: random.Random, value: msgspec.Struct) -> bytes:
    """A message of the handshake with changes, or without any now and then."""
    data = msgspec.msgpack.encode(value)
    how = dice.random()
    if how < 0.4:
        return data
    if how < 0.7:
        plain = msgspec.msgpack.decode(data)
        return mutate.packed(mutate.changed_value(dice, plain, binary=True))
    return mutate.changed(dice, data)


def framed(dice: random.Random) -> bytes:
    """One frame of any kind, perhaps changed."""
    sizes = ((3,), (2, 5), (0, 4), (70_000,))
    tensors = [torch.ones(dice.choice(sizes)) for _ in range(dice.choice((0, 1, 1, 2)))]
    purpose: Any = dice.choice(("kv", "q", "ping", "pong", "step", "hidden"))
    frame = frame_for(purpose, ("r",), (0,), dice.choice((0, 64)), 1, tuple(tensors))
    header = frames.encode(frame)
    if dice.random() < 0.5:
        plain = mutate.changed_value(dice, msgspec.msgpack.decode(header), binary=True)
        header = mutate.packed(plain)
    size = len(header) if dice.random() < 0.95 else dice.randrange(1 << 16)
    kind = FRAME if dice.random() < 0.97 else dice.randrange(1 << 16)
    payload = b"".join(bytes(frames.as_bytes(tensor)) for tensor in tensors)
    if dice.random() < 0.2:
        payload = mutate.changed(dice, payload)
    return PREFIX.pack(kind, size & 0xFFFF) + header + payload + dice.choice((b"\0", b"\0", b"\1"))


class Listening(Target):
    """A plane that is dialled: the handshake, with a proof that holds mostly, and frames."""

    name = "plane"
    said = (OSError, asyncio.IncompleteReadError)

    async def __aenter__(self) -> Self:
        self._numbers = itertools.count()
        self._plane, self._friend = Plane("fuzzed/1", "tcp"), Plane("friend/1", "tcp")
        for plane in (self._plane, self._friend):
            await plane.start()
        Pings(self._plane)
        self._plane.serve("q", lambda source, frame, tensors: None)
        self._plane.serve("step", lambda source, frame, tensors: None, {("r", 0)})
        self._friend.introduce(self._plane.peer)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._friend.close()
        await self._plane.close()

    def case(self, dice: random.Random) -> Pieces:
        greeting = Hello("NAME", "tcp://127.0.0.1:1", "tcp", bytes(16), b"", bytes(16))
        body = changed_struct(dice, greeting)
        head = opening(body)
        if dice.random() < 0.15:
            head = mutate.changed(dice, head)
        proof = dice.choice((b"right",) * 9 + (dice.randbytes(MAC_BYTES), b""))
        stream = b"".join(framed(dice) for _ in range(dice.choice((0, 1, 1, 2, 5))))
        return [head, body, proof, mutate.changed(dice, stream) if dice.random() < 0.3 else stream]

    async def feed(self, pieces: Pieces) -> None:
        head, body, proof, stream = pieces
        number = next(self._numbers)
        with self._plane.open("r", 0):
            reader, writer = await asyncio.open_connection(*hello.parse(self._plane.address))
            try:
                nonce = (await _body(reader, Challenge)).nonce
                name = b"%04d" % (number % 10_000)
                body = body.replace(b"NAME", name)
                mac = Proof(self._plane.token, nonce).mac(body) if proof == b"right" else proof
                writer.write(head + body + mac)
                async with asyncio.timeout(SILENCE_S):
                    answer: Any = await _body(reader, Welcome | Refusal)
                if isinstance(answer, Welcome):
                    writer.write(stream)
                    await writer.drain()
                    await asyncio.sleep(LEFT_S)
                writer.write_eof()
                await reader.read()
            except TimeoutError:  # the plane waits for more
                pass
            finally:
                writer.close()

    async def check(self) -> None:
        """Another plane can still open a link, and is heard."""
        frame = frame_for("kv", ("other",), (0,), 0, 0, ())
        with self._plane.open("other", 0) as inbox:
            await self._friend.send(self._plane.name, frame, ())
            await inbox.recv("kv", 0, 0, self._friend.name)
        assert not self._plane.counters["handler_errors"]
        assert not self._plane.queued_bytes


async def _body(reader: asyncio.StreamReader, kind: Any) -> Any:
    """One message of the handshake; a proof after it is left."""
    _, _, length = OPENING.unpack(await reader.readexactly(OPENING.size))
    return msgspec.msgpack.decode(await reader.readexactly(length), type=kind)


class Dialling(Target):
    """A plane that dials: what an acceptor says in the handshake, and its receipts."""

    name = "plane-dial"
    said = (ServiceError,)

    async def __aenter__(self) -> Self:
        self._numbers = itertools.count()
        self._plane = Plane("fuzzed/1", "tcp")
        await self._plane.start()
        self._pieces: Pieces = []
        self._acceptor = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._acceptor.sockets[0].getsockname()[1]
        self._address = f"tcp://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._plane.close()
        self._acceptor.close()
        await self._acceptor.wait_closed()

    def case(self, dice: random.Random) -> Pieces:
        challenge = changed_struct(dice, Challenge(bytes(16)))
        answer: msgspec.Struct = Welcome("NAME/1")
        if dice.random() < 0.3:
            answer = Refusal("why", dice.choice((0, 1, 5, (1 << 63) - 1)))
        body = changed_struct(dice, answer)
        heads = [opening(each) for each in (challenge, body)]
        if dice.random() < 0.15:
            place = dice.randrange(2)
            heads[place] = mutate.changed(dice, heads[place])
        records = b"".join(receipt(each) for each in (1, 1, 2, 0)) + GOODBYE
        mac = dice.choice((b"right",) * 6 + (dice.randbytes(MAC_BYTES), b""))
        return [heads[0] + challenge, heads[1], body, mac, mutate.changed(dice, records)]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        challenge, head, body, mac, records = self._pieces
        try:
            writer.write(challenge)
            greeting = await _body(reader, Hello)
            await reader.readexactly(MAC_BYTES)
            body = body.replace(b"NAME", self._name[:4])
            right = Proof(bytes(16), greeting.nonce).mac(body)
            writer.write(head + body + (right if mac == b"right" else mac))
            writer.write(records)
            await writer.drain()
            await asyncio.sleep(LEFT_S)
        except (OSError, asyncio.IncompleteReadError, msgspec.MsgspecError):
            pass
        finally:
            writer.close()

    async def feed(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._name = b"%04d" % (next(self._numbers) % NAMES)
        peer = messages.Peer(f"{self._name.decode()}/1", self._address, bytes(16))
        self._plane.introduce(peer)
        tensors = (torch.ones(3),)
        frame = frame_for("kv", ("r",), (0,), 0, 0, tensors)
        try:
            await self._plane.send(peer.name, frame, tensors)
            await self._plane.send(peer.name, frame, tensors)
        finally:
            self._plane.forget(peer.name)
