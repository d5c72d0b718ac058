"""More than is allowed, and what is no message at all."""

import asyncio
import random
from contextlib import suppress

import msgpack
import pytest

from sps2.common.bus import curve, wire
from sps2.common.bus.wire import Kind
from sps2.common.config import Bus
from sps2.common.errors import Internal, Invalid, PeerLost, Refused

from ...waiting import until
from .service import (
    PATIENT,
    Count,
    Echo,
    Grow,
    Hang,
    Keep,
    Number,
    background,
    raw,
    raw_server,
    reached,
    served,
)

SMALL = Bus(heartbeat_s=20.0, max_message_bytes=10_000)


# --- limits ---


async def test_a_client_that_takes_nothing_of_its_stream_loses_it() -> None:
    async with served(send_s=0.05) as (service, server), raw(server.address) as client:
        await client.call(Count(1000), credit=4)
        for _ in range(4):
            assert (await client.receive())[0].kind is Kind.ITEM
        call, error = await client.error()
        assert (call, str(error)) == (1, "the client took nothing of its answer for 0.05 s")
        await until(lambda: server.calls == 0)
        assert service.ended == ["count"]


async def test_a_stream_that_has_nothing_to_send_waits_for_nobody() -> None:
    async with served(send_s=0.05) as (service, server), raw(server.address) as client:
        await client.call(Keep("a"), credit=1)
        assert (await client.receive())[0].kind is Kind.ITEM
        await asyncio.sleep(0.2)
        assert (server.calls, service.ended) == (1, [])


async def test_too_many_calls_are_refused_by_the_peer() -> None:
    async with served() as (service, server), reached(server.address, max_calls=2) as peer:
        async with background(peer.call(Hang("a"))), background(peer.call(Hang("b"))):
            await until(lambda: len(service.started) == 2)
            with pytest.raises(Refused):
                await peer.call(Echo(""))
        await peer.call(Echo(""))


@pytest.mark.parametrize("limit", ["max_calls", "max_client_calls"])
async def test_too_many_calls_are_refused_by_the_server(limit: str) -> None:
    async with served(**{limit: 2}) as (service, server), reached(server.address) as peer:
        async with background(peer.call(Hang("a"))), background(peer.call(Hang("b"))):
            await until(lambda: len(service.started) == 2)
            with pytest.raises(Refused):
                await peer.call(Echo(""))
            assert server.counters["refused"] == 1
        await until(lambda: server.calls == 0)
        await peer.call(Echo(""))


async def test_oversize_is_invalid_on_both_sides() -> None:
    big = Echo("", bytes(10_001))
    async with served(SMALL) as (_, server):
        async with reached(server.address, SMALL) as peer:
            with pytest.raises(Invalid, match="over 10000"):
                await peer.call(big)
            with pytest.raises(Internal, match="over 10000"):
                await peer.call(Grow(10_001))
        async with reached(server.address, PATIENT) as peer:
            with pytest.raises(Invalid, match="over 10000"):
                await peer.call(big)
            with pytest.raises(PeerLost):
                await peer.call(Echo("", bytes(5 << 20)))
            assert (await peer.call(Echo("back"))).text == "back"
        assert server.counters["oversize"] == 1


# --- junk ---


async def test_junk_frames_are_answered_or_counted() -> None:
    async with served() as (_, server), raw(server.address) as client:
        call = wire.pack_header(Kind.CALL, 3, "Echo")
        for frames in ([b""], [call], [call, b"", b""], [b"\xc1", b""], [b"x" * 600, b""]):
            await client.send(*frames)
            assert isinstance((await client.error())[1], Invalid)
        await client.send(msgpack.packb([2, "future", 77]), b"")
        number, error = await client.error()
        assert (number, str(error)) == (77, "bus version 2; 1 is spoken here")
        for body in (b"", b"\xc1", b"\x91" * 1000, msgpack.packb({"text": 1})):
            await client.send(call, body)
            number, error = await client.error()
            assert number == 3
            assert isinstance(error, Invalid)
        for kind in (Kind.REPLY, Kind.ITEM, Kind.END, Kind.ERROR, Kind.PONG):
            await client.send(wire.pack_header(kind, 3), b"")
        await client.send(wire.pack_header(Kind.CALL, 0, "Echo"), b"")
        for kind in (Kind.CANCEL, Kind.CREDIT):
            await client.send(wire.pack_header(kind, 9), b"")
        await client.send(wire.pack_header(Kind.PING), b"")
        assert (await client.receive())[0].kind is Kind.PONG
        assert server.counters == {"bad_frames": 11, "bad_versions": 1, "invalid_bodies": 4}


async def test_a_call_id_in_use_is_dropped() -> None:
    async with served() as (service, server), raw(server.address) as client:
        await client.call(Hang("a"), 1)
        await client.call(Hang("b"), 1)
        await until(lambda: service.started)
        await client.send(wire.pack_header(Kind.CANCEL, 1), b"")
        await until(lambda: service.ended == ["a"])
        assert service.started == ["a"]
        assert server.counters["bad_frames"] == 1


async def test_random_frames() -> None:
    source = random.Random(5)
    async with (
        served() as (_, server),
        reached(server.address) as peer,
        raw(server.address) as client,
    ):
        for _ in range(500):
            head = bytearray(wire.pack_header(Kind(source.randint(1, 9)), 1, "Count", 50, 9))
            head[source.randrange(len(head))] = source.randrange(256)
            frames = [bytes(head), source.randbytes(source.randrange(30))]
            await client.send(*frames[: source.choice((1, 2, 2, 2))])
        assert (await peer.call(Echo("alive"))).text == "alive"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(100),
        b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + b"\xff" * 200,
        random.Random(3).randbytes(5000),
    ],
    ids=["http", "zeros", "greeting", "random"],
)
async def test_garbage_on_the_port(data: bytes) -> None:
    async with served() as (_, server), reached(server.address) as peer:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(server.address[-5:].strip(":"))
        )
        with suppress(OSError):
            writer.write(data)
            await writer.drain()
            writer.write_eof()
            while await reader.read(1000):
                pass
        writer.close()
        assert (await peer.call(Echo("alive"))).text == "alive"
        await until(lambda: server.counters["bad_handshakes"] + server.counters["disconnects"])


@pytest.mark.parametrize("data", [b"", b"\xff" + bytes(8) + b"\x7f\x03"], ids=["none", "greeting"])
async def test_who_does_not_say_who_it_is_is_disconnected(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such connections took every descriptor of a service for 30 s each."""
    monkeypatch.setattr(curve, "HANDSHAKE_S", 0.05)
    async with served() as (_, server), reached(server.address) as peer:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(server.address.rpartition(":")[2])
        )
        writer.write(data)
        async with asyncio.timeout(60):
            while await reader.read(1000):
                pass
        writer.close()
        assert (await peer.call(Echo("alive"))).text == "alive"


async def test_a_server_that_answers_junk() -> None:
    async with raw_server() as (socket, address), reached(address) as peer:
        for kind, body, wanted, message in (
            (Kind.REPLY, b"\xc1", Internal, "malformed answer"),
            (Kind.REPLY, msgpack.packb({"text": 1}), Internal, "malformed answer"),
            (Kind.ITEM, b"", Internal, "unexpected ITEM"),
            (Kind.ERROR, b"\xc1", Internal, "malformed error"),
            (None, b"", Invalid, "speaks bus version 7, this is 1"),
        ):
            async with background(peer.call(Echo(""))) as call:
                name, head, _ = await socket.recv_multipart()
                number = wire.unpack_header(head).call
                await socket.send_multipart([name, b"\xc1"])
                await socket.send_multipart([name, b"\xc1", b""])
                await socket.send_multipart([name, wire.pack_header(Kind.REPLY, 99), b""])
                foreign = msgpack.packb([7, 1, number])
                head = foreign if kind is None else wire.pack_header(kind, number)
                await socket.send_multipart([name, head, body])
                with pytest.raises(wanted, match=message):
                    await call
        assert peer.counters == {"bad_frames": 10, "bad_versions": 1}


async def test_a_server_that_sends_more_than_it_may() -> None:
    async with (
        raw_server() as (socket, address),
        reached(address, window=4) as peer,
        peer.stream(Count(9)) as items,
    ):
        name, head, _ = await socket.recv_multipart()
        header = wire.unpack_header(head)
        assert header.credit == 4
        for _ in range(50):
            frames = [name, wire.pack_header(Kind.ITEM, header.call), wire.pack(Number(1))]
            await socket.send_multipart(frames)
        await socket.send_multipart([name, wire.pack_header(Kind.PONG), b""])
        await until(lambda: not peer._link.calls)
        for _ in range(4):
            assert await anext(items) == Number(1)
        with pytest.raises(Internal, match="more items than it may"):
            await anext(items)
