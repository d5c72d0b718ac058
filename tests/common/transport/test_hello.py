import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
import torch

from sps2.common.errors import Invalid, PeerLost
from sps2.common.keys import Key
from sps2.common.messages import Peer
from sps2.common.transport import hello
from sps2.common.transport.backends import BackendName
from sps2.common.transport.connection import Connection
from sps2.common.transport.frame import frame_for
from sps2.common.transport.plane import Plane

GREETING = hello.Hello("a/1", "tcp://127.0.0.1:1", "tcp", bytes(16))


@asynccontextmanager
async def planes(
    backend: BackendName, *names: str, key: Key | None = None
) -> AsyncIterator[list[Plane]]:
    made = [Plane(name, backend, key=key) for name in names]
    async with asyncio.timeout(60):
        for plane in made:
            await plane.start()
        try:
            yield made
        finally:
            for plane in made:
                await plane.close()


async def talk(a: Plane, b: Plane, at: int = 0) -> None:
    """A frame from `a`, which was introduced, arrives at `b`."""
    tensors = (torch.ones(3),)
    a.introduce(b.peer)
    with b.open("r", at) as inbox:
        await a.send(b.name, frame_for("kv", ("r",), (at,), 0, 0, tensors), tensors)
        await inbox.recv("kv", 0, 0, a.name)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400\r\n\r\n", b"SPS2\x09\x00\x00\x00"])
async def test_dialling_something_else(answer: bytes) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(PeerLost, match="cannot reach"):
            await hello.dial(Peer("b/1", f"tcp://127.0.0.1:{port}", bytes(16)), GREETING)


async def test_nobody_listens() -> None:
    with pytest.raises(PeerLost, match="cannot reach"):
        await hello.dial(Peer("b/1", "tcp://127.0.0.1:1", bytes(16)), GREETING)


@pytest.mark.parametrize("address", ["", "tcp://", "127.0.0.1:80", "tcp://host", "tcp://h:x"])
def test_malformed_addresses(address: str) -> None:
    with pytest.raises(Invalid, match="is not an address"):
        hello.parse(address)


def test_a_token_is_not_shown() -> None:
    peer = Peer("b/1", "tcp://127.0.0.1:1", b"sixteen secrets!")
    assert "secrets" not in f"{peer} {peer!r}"


@pytest.mark.parametrize("scheme", ["tcp", "tcp+tls", "ucx", "ucx+tls"])
@pytest.mark.parametrize(
    "forge",
    [
        lambda b, other: msgspec.structs.replace(b, token=bytes(16)),
        lambda b, other: msgspec.structs.replace(b, token=other.token),
        lambda b, other: msgspec.structs.replace(b, token=b""),
    ],
)
async def test_who_was_not_introduced_gets_nothing(
    backend: BackendName, key: Key | None, forge: Callable[[Peer, Peer], Peer]
) -> None:
    async with planes(backend, "a/1", "b/1", "c/1", key=key) as (a, b, c):
        c.introduce(forge(b.peer, a.peer))
        with pytest.raises(PeerLost, match="not introduced by the control plane"):
            await talk_to(c, b)
        assert b.counters["bad_hellos"] == 1
        await talk(a, b)


async def talk_to(stranger: Plane, b: Plane) -> None:
    tensors = (torch.ones(3),)
    await stranger.send(b.name, frame_for("kv", ("r",), (0,), 0, 0, tensors), tensors)


@pytest.mark.parametrize("scheme", ["tcp", "tcp+tls", "ucx", "ucx+tls"])
async def test_a_recorded_handshake_said_again_gets_nothing(
    backend: BackendName, key: Key | None
) -> None:
    recorded = bytearray()
    answered = bytearray()

    async def pump(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, record: bytearray
    ) -> None:
        while data := await source.read(1 << 16):
            record.extend(data)
            sink.write(data)
        sink.close()

    async with planes(backend, "a/1", "b/1", key=key) as (a, b), asyncio.TaskGroup() as group:
        host, port = hello.parse(b.address)

        async def tap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            back, forth = await asyncio.open_connection(host, port)
            group.create_task(pump(reader, forth, recorded))
            group.create_task(pump(back, writer, answered))

        wire = await asyncio.start_server(tap, "127.0.0.1", 0)
        tapped = f"{backend}://127.0.0.1:{wire.sockets[0].getsockname()[1]}"
        a.introduce(msgspec.structs.replace(b.peer, address=tapped))
        with b.open("r", 0) as inbox:
            await talk_to(a, b)
            await inbox.recv("kv", 0, 0, a.name)
        for secret in (a.token, b.token):
            assert secret not in recorded + answered
        b.forget(a.name)
        wire.close()

        # as if it were another: the name alone must not be what keeps it out
        again = bytes(recorded).replace(b"a/1", b"d/1")
        for said in (bytes(recorded), again):
            before = dict(b.counters)
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(said)
            with suppress(ConnectionResetError):  # what b did not read makes its end a reset
                answer = await reader.read()
                assert len(answer) < 200
            writer.close()
            while b.counters["bad_hellos"] == before.get("bad_hellos", 0):
                await asyncio.sleep(0.01)
            assert b.counters["kv_received"] == before["kv_received"]
        async with planes(backend, "c/1", key=key) as (c,):
            await talk(c, b, 1)


async def test_an_impostor_is_sent_nothing() -> None:
    """Whoever listens at a peer's address without its token learns neither token nor tensors."""
    heard = bytearray()

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        inner, outside = socket.socketpair()
        for end in (inner, outside):
            end.setblocking(False)
        inside = Connection(inner)
        challenge = hello.Challenge(bytes(16))
        await hello._write(inside, challenge)
        writer.write(await loop.sock_recv(outside, 1000))
        heard.extend(await reader.read(4096))
        await hello._write(inside, hello.Welcome("b/1"))
        writer.write(await loop.sock_recv(outside, 1000) + bytes(32))
        heard.extend(await reader.read())
        for end in (inner, outside):
            end.close()
        writer.close()

    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    async with server, planes("tcp", "a/1", "b/1") as (a, b):
        address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        a.introduce(msgspec.structs.replace(b.peer, address=address))
        with pytest.raises(PeerLost, match="cannot reach b/1"):
            await talk_to(a, b)
        assert a.token not in heard
        assert len(heard) < 300
