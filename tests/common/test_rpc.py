"""Calls, streams, and everything that can go wrong with them, over real sockets on both loops."""

import asyncio
import random
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgpack
import pytest
import zmq

from sps2.common import wire
from sps2.common.config import Bus
from sps2.common.errors import Cancelled, Internal, Invalid, PeerLost, Refused, ServiceError
from sps2.common.messages import Done
from sps2.common.rpc import Peer, Server
from sps2.common.wire import Kind

from .bus import (
    HANG_S,
    HASTY,
    PATIENT,
    Count,
    Echo,
    Fail,
    Grow,
    Hang,
    Keep,
    Number,
    Service,
    Text,
    Unknown,
    background,
    raw,
    raw_server,
    reached,
    served,
    until,
)

SMALL = Bus(beat_s=20.0, max_message_bytes=10_000)


# --- calls ---


async def test_call() -> None:
    async with served() as (_, server), reached(server.address) as peer:
        reply = await peer.call(Echo("é\0", b"\xff\0"), deadline_s=60)
        assert reply == Text("é\0", b"\xff\0")
        replies = await asyncio.gather(*(peer.call(Echo(str(each))) for each in range(200)))
        assert [reply.text for reply in replies] == [str(each) for each in range(200)]


async def test_large_call() -> None:
    data = random.Random(1).randbytes(20 << 20)
    async with served() as (_, server), reached(server.address) as peer:
        assert (await peer.call(Echo("", data))).data == data


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("refused", Refused("no room", 3.0)),
        ("invalid", Invalid("wrong", "field")),
        ("lost", PeerLost("decode-7")),
        ("group", Refused("no room", 3.0)),
        ("internal", Internal("known fault")),
        ("mixed", Internal("ExceptionGroup in Fail")),
        ("other", Internal("ValueError in Fail")),
    ],
)
async def test_errors_travel(
    how: str, error: ServiceError, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as (_, server), reached(server.address) as peer:
        with pytest.raises(type(error)) as caught:
            await peer.call(Fail(how))
        assert (type(caught.value), caught.value.args) == (type(error), error.args)
        is_fault = how in ("mixed", "other")
        assert ("secret" in caplog.text) is is_fault
        assert server.counters["faults"] == is_fault


async def test_a_handler_cancelled_from_within_is_answered() -> None:
    async with served() as (_, server), reached(server.address) as peer:
        with pytest.raises(Cancelled):
            await peer.call(Fail("cancelled"))


async def test_unknown_method_and_wrong_fields() -> None:
    async with served() as (_, server), reached(server.address) as peer:
        with pytest.raises(Invalid, match="unknown method 'Unknown'"):
            await peer.call(Unknown())
        with pytest.raises(Invalid, match=r"Echo: .*text"):
            await peer.call(Echo(5))  # type: ignore[arg-type]
        assert server.counters == {"unknown_methods": 1, "invalid_bodies": 1}


# --- streams ---


async def test_stream_to_its_end() -> None:
    async with served() as (service, server), reached(server.address) as peer:
        async with peer.stream(Count(1000)) as items:
            values = [item.value async for item in items if isinstance(item, Number)]
            assert [item async for item in items] == []
        assert values == list(range(1000))
        async with peer.stream(Count(0)) as items:
            assert [item async for item in items] == []
        assert service.ended == ["count"] * 2


async def test_stream_that_fails_gives_its_items_first() -> None:
    async with served() as (_, server), reached(server.address) as peer:
        values = []
        async with peer.stream(Count(10, fail_at=3)) as items:
            for _ in range(3):
                values.append(await anext(items))
            for _ in range(2):
                with pytest.raises(Refused, match="enough"):
                    await anext(items)
        assert values == [Number(0), Number(1), Number(2)]


async def test_leaving_a_stream_early_ends_its_handler() -> None:
    async with served() as (service, server), reached(server.address) as peer:
        async with peer.stream(Keep("a")) as items:
            assert await anext(items) == Done()
            assert server.calls == 1
        await until(lambda: service.ended == ["a"])
        with suppress(ZeroDivisionError):
            async with peer.stream(Keep("b")) as items:
                await anext(items)
                raise ZeroDivisionError
        await until(lambda: service.ended == ["a", "b"])


async def test_a_stream_ended_before_a_call_has_ended_at_the_server_too() -> None:
    async with served() as (service, server), reached(server.address) as peer:
        async with peer.stream(Count(10**9)) as items:
            await anext(items)
        await peer.call(Echo(""))
        assert service.ended == ["count"]


async def test_a_slow_consumer_stops_the_producer() -> None:
    async with (
        served() as (service, server),
        reached(server.address) as peer,
        peer.stream(Count(1000)) as items,
    ):
        await until(lambda: service.produced == wire.WINDOW + 1)
        for _ in range(50):
            await peer.call(Echo("others go on"))
        assert service.produced == wire.WINDOW + 1
        for taken in range(1, 1001):
            await anext(items)
            assert service.produced <= taken + wire.WINDOW + 1
        with pytest.raises(StopAsyncIteration):
            await anext(items)


async def test_a_window_of_one() -> None:
    async with (
        served() as (service, server),
        reached(server.address, window=1) as peer,
        peer.stream(Count(20)) as items,
    ):
        async for item in items:
            assert isinstance(item, Number)
            assert service.produced <= item.value + 3


async def test_a_stream_without_credit_is_cancelled_at_once() -> None:
    async with served() as (service, server), reached(server.address) as peer:
        async with peer.stream(Count(1000)):
            await until(lambda: service.produced == wire.WINDOW + 1)
        await until(lambda: service.ended == ["count"])


# --- cancelling ---


async def test_cancelling_the_caller_cancels_the_handler() -> None:
    async with served() as (service, server), reached(server.address) as peer:
        async with background(peer.call(Hang("a"))):
            await until(lambda: service.started == ["a"])
        await until(lambda: service.ended == ["a"] and server.calls == 0)
        assert (await peer.call(Echo("alive"))).text == "alive"


async def test_a_cancelled_handler_finishes_its_cleanup_whatever_happens() -> None:
    async with served() as (service, server):
        service.may_end.clear()
        peer = Peer(server.address, PATIENT)
        async with background(peer.call(Hang("a"))):
            await until(lambda: service.started == ["a"])
        await peer.call(Echo("the cancel frame has come"))
        assert (server.calls, service.ended) == (1, [])
        await peer.close()
        await until(lambda: server.counters["disconnects"])
        async with background(server.close()):
            await asyncio.sleep(0.01)
            assert (server.calls, service.ended) == (1, [])
            service.may_end.set()
            await until(lambda: service.ended == ["a"])


async def test_cancel_right_behind_the_call() -> None:
    async with served() as (service, server), raw(server.address) as client:
        for call in range(1, 200):
            await client.call(Keep(str(call)), call, credit=4)
            await client.send(wire.pack_header(Kind.CANCEL, call), b"")
        await client.call(Echo("last"), 1000)
        while (await client.receive())[0].call != 1000:
            pass
        await until(lambda: server.calls == 0)
        assert sorted(service.started) == sorted(service.ended)


# --- deadlines ---


async def test_deadline_at_the_caller() -> None:
    async with served() as (service, server), reached(server.address) as peer:
        with pytest.raises(Cancelled, match=r"Hang .*passed its deadline"):
            await peer.call(Hang("a"), deadline_s=0.05)
        await until(lambda: server.calls == 0)
        assert service.started == service.ended
        with pytest.raises(Cancelled):
            await peer.call(Hang("b"), deadline_s=0)


async def test_deadline_at_the_server() -> None:
    async with served() as (service, server), raw(server.address) as client:
        await client.call(Hang("a"), deadline_ms=20)
        call, error = await client.error()
        assert call == 1
        assert isinstance(error, Cancelled)
        assert "Hang passed its deadline at tcp://" in str(error)
        assert service.ended == ["a"]


async def test_an_endless_deadline() -> None:
    async with served() as (_, server), reached(server.address) as peer:
        assert (await peer.call(Echo("x"), deadline_s=float("1e300"))).text == "x"


# --- losses ---

SERVER = """
    import asyncio, sys
    from sps2.common.config import Bus
    from sps2.common.messages import Done, Request, Stream

    class Hang(Request[Done], frozen=True):
        tag: str = ""

    class Count(Stream[Done], frozen=True):
        stop: int
        fail_at: int = -1

    class Service:
        async def hang(self, request: Hang) -> Done:
            await asyncio.sleep(600)

        async def count(self, request: Count):
            yield {"type": "Number", "value": 0}
            await asyncio.sleep(600)

    async def main() -> None:
        from sps2.common.rpc import Server
        server = Server(Service(), Bus(beat_s=20.0))
        print(await server.start("tcp://127.0.0.1:0"), flush=True)
        await asyncio.sleep(600)

    asyncio.run(main())
"""

CLIENT = """
    import asyncio, sys
    from sps2.common.config import Bus
    from sps2.common.messages import Done, Stream

    class Keep(Stream[Done], frozen=True):
        tag: str = ""

    async def main() -> None:
        from sps2.common.rpc import Peer
        peer = Peer(sys.argv[1], Bus(beat_s=20.0))
        async with peer.stream(Keep("x")) as items:
            await anext(items)
            print("open", flush=True)
            await anext(items)

    asyncio.run(main())
"""


class Process:
    """Another Python process, killed at the end."""

    def __init__(self, program: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await asyncio.to_thread(self._process.stdout.readline)).strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


async def test_a_killed_server_is_noticed_without_waiting_for_beats() -> None:
    with Process(SERVER) as process:
        address = await process.line()
        async with asyncio.timeout(HANG_S), reached(address) as peer:
            async with peer.stream(Count(1)) as items, background(peer.call(Hang())) as call:
                assert await anext(items) == Number(0)
                process.kill()
                with pytest.raises(PeerLost, match="was lost"):
                    await anext(items)
                with pytest.raises(PeerLost) as caught:
                    await call
                assert caught.value.peer == address
            with pytest.raises(Cancelled):  # it waits for the server's return
                await peer.call(Echo(""), deadline_s=0.05)


async def test_a_killed_client_is_noticed_without_waiting_for_beats() -> None:
    async with served() as (service, server):
        with Process(CLIENT, server.address) as process:
            assert await process.line() == "open"
            assert service.started == ["x"]
            process.kill()
            await until(lambda: service.ended == ["x"] and server.calls == 0)
            assert server.counters["clients_lost"] == 1


async def test_a_restarted_server_gets_new_calls_only() -> None:
    async with asyncio.timeout(HANG_S):
        first = Server(old := Service(), PATIENT)
        address = await first.start("tcp://127.0.0.1:0")
        async with reached(address) as peer:
            calls = [asyncio.create_task(peer.call(Hang(str(each)))) for each in range(20)]
            await until(lambda: len(old.started) == 20)
            await first.close()
            lost = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(error, PeerLost) for error in lost)
            assert len(old.ended) == 20
            async with (
                background(peer.call(Hang("waits"))),
                background(peer.call(Hang("gone"))) as gone,
            ):
                await asyncio.sleep(0)
                gone.cancel()
                async with served(address=address) as (new, server):
                    assert server.address == address
                    assert (await peer.call(Echo("again"))).text == "again"
                    await until(lambda: new.started == ["waits"])


async def test_restarting_again_and_again() -> None:
    async with asyncio.timeout(HANG_S):
        async with served() as (_, server):
            address = server.address
        peer = Peer(address, PATIENT)
        for each in range(5):
            await until(lambda losses=each: peer.counters["losses"] == losses)
            async with background(peer.call(Echo(str(each)))) as call:
                server = Server(Service(), PATIENT)
                await server.start(address)
                assert (await call).text == str(each)
                await server.close()
        await peer.close()


async def test_a_silent_server_is_lost() -> None:
    async with raw_server() as (socket, address):
        peer = Peer(address, HASTY, name="scheduler")
        async with background(peer.call(Hang())) as call:
            await socket.recv_multipart()
            with pytest.raises(PeerLost, match="scheduler was lost: it was silent for 3 beats"):
                await call
        await peer.close()


async def test_a_silent_client_is_lost() -> None:
    async with served(HASTY) as (service, server), raw(server.address) as client:
        await client.call(Keep("a"), 5, credit=9)
        assert (await client.receive())[0].kind is Kind.ITEM
        while (answer := await client.receive())[0].kind is Kind.PING:
            pass
        assert answer[0].call == 5
        assert isinstance(wire.unpack_error(answer[1]), PeerLost)
        assert service.ended == ["a"]
        assert server.counters["clients_lost"] == 1


async def test_beats_keep_a_long_call_alive() -> None:
    async with (
        served(HASTY) as (_, server),
        reached(server.address, HASTY) as peer,
        background(peer.call(Hang("a"))) as call,
        peer.stream(Keep("b")) as items,
    ):
        await anext(items)
        await asyncio.sleep(12 * HASTY.beat_s)
        assert not call.done()
        assert server.calls == 2


async def test_closing_a_server_ends_its_handlers_and_their_callers() -> None:
    async with (
        served() as (service, server),
        reached(server.address) as peer,
        peer.stream(Keep("a")) as items,
        background(peer.call(Hang("b"))) as call,
    ):
        await anext(items)
        await until(lambda: service.started == ["a", "b"])
        await server.close()
        assert sorted(service.ended) == ["a", "b"]
        with pytest.raises(PeerLost):
            await anext(items)
        with pytest.raises(PeerLost):
            await call


async def test_closing_a_peer_ends_its_calls() -> None:
    async with served() as (service, server):
        peer = Peer(server.address, PATIENT)
        async with background(peer.call(Hang("a"))) as call:
            await until(lambda: service.started)
            await peer.close()
            with pytest.raises(PeerLost, match="closed"):
                await call
        with pytest.raises(PeerLost, match="closed"):
            await peer.call(Echo(""))
        await until(lambda: service.ended == ["a"])


async def test_closing_twice_or_before_any_use() -> None:
    async with asyncio.timeout(HANG_S):
        await Server(Service(), PATIENT).close()
        await Peer("tcp://127.0.0.1:1", PATIENT).close()
        async with served() as (_, server), reached(server.address) as peer:
            await peer.call(Echo(""))
            await peer.close()
            await peer.close()
            await server.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}


# --- a server that is not there ---


async def test_a_call_waits_for_its_server() -> None:
    async with served() as (_, server):
        address = server.address
    async with (
        asyncio.timeout(HANG_S),
        reached(address) as peer,
        background(peer.call(Echo("early"))) as call,
        background(first(peer)) as item,
    ):
        with pytest.raises(Cancelled, match="deadline"):
            await peer.call(Echo(""), deadline_s=0.05)
        async with served(address=address):
            assert (await call).text == "early"
            assert await item == Number(0)


async def first(peer: Peer) -> Number | Text:
    async with peer.stream(Count(5)) as items:
        return await anext(items)


async def test_waiting_for_a_server_ends_with_its_cancel_or_close() -> None:
    async with served() as (_, server):
        address = server.address
    async with (
        asyncio.timeout(HANG_S),
        reached(address) as peer,
        background(peer.call(Echo(""))) as one,
        background(peer.call(Echo(""))) as two,
    ):
        await until(lambda: peer.calls == 2)
        one.cancel()
        await until(lambda: peer.calls == 1)
        await peer.close()
        with pytest.raises(PeerLost, match="closed"):
            await two


@pytest.mark.parametrize(
    "address", ["", "localhost:80", "tcp://localhost", "http://x:1", "tcp://:a"]
)
async def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(Invalid, match="address"):
        Peer(address, PATIENT)


async def test_a_host_that_cannot_be_found() -> None:
    async with asyncio.timeout(HANG_S), reached("tcp://no-such-host.invalid:1") as peer:
        with pytest.raises(Cancelled):
            await peer.call(Echo(""), deadline_s=0.1)


async def test_a_port_in_use_is_named() -> None:
    async with served() as (_, server):
        with pytest.raises(Invalid, match=f"{server.address}: the port is in use"):
            await Server(Service(), PATIENT).start(server.address)
    with pytest.raises(Invalid, match="cannot listen on tcp://"):
        await Server(Service(), PATIENT).start("tcp://no-such-host.invalid:1")


# --- limits ---


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


# --- all together ---


async def test_nothing_is_left_after_a_thousand_calls() -> None:
    source = random.Random(11)
    async with served() as (service, server), reached(server.address) as peer:

        async def one(each: int) -> None:
            match source.randrange(8):
                case 0:
                    await peer.call(Echo(str(each)))
                case 1:
                    await peer.call(Fail(source.choice(("refused", "cancelled", "group"))))
                case 2:
                    await peer.call(Hang(str(each)), deadline_s=source.random() / 20)
                case 3:
                    await peer.call(Unknown())
                case 4:
                    async with peer.stream(Count(source.randrange(200))) as items:
                        assert len([item async for item in items]) <= 200
                case 5:
                    async with peer.stream(Count(10**9)) as items:
                        for _ in range(source.randrange(100)):
                            await anext(items)
                case 6:
                    async with peer.stream(Count(50, fail_at=source.randrange(50))) as items:
                        async for _ in items:
                            pass
                case 7:
                    async with asyncio.timeout(source.random() / 20):
                        await peer.call(Hang(str(each)))

        results: list[Any] = []
        for _ in range(10):
            calls = (one(each) for each in range(100))
            results += await asyncio.gather(*calls, return_exceptions=True)
        kinds = {type(result) for result in results}
        assert kinds <= {type(None), Refused, Cancelled, Invalid, TimeoutError}
        assert {type(None), Refused, Cancelled, Invalid, TimeoutError} <= kinds
        assert peer.calls == 0
        assert not peer._link.calls
        await until(lambda: server.calls == 0)
        assert not server._clients
        assert sorted(each for each in service.ended if each != "count") == sorted(service.started)
        assert server.counters["faults"] == 0


async def test_one_context_for_many() -> None:
    context = zmq.asyncio.Context()
    async with asyncio.timeout(HANG_S):
        server = Server([Service()], PATIENT, context)
        peer = Peer(await server.start("tcp://127.0.0.1:0"), PATIENT, context=context)
        assert (await peer.call(Echo("x"))).text == "x"
        await peer.close()
        await server.close()
    context.term()


# --- handlers ---


class Two:
    async def echo(self, request: Echo) -> Text:
        return Text("")


class WrongForm:
    async def count(self, request: Count) -> Number:
        return Number(0)


class Others:
    """Nothing here is a handler."""

    async def none(self) -> None: ...

    async def two(self, one: Echo, other: Echo) -> None: ...

    async def plain(self, request: int) -> None: ...

    def not_async(self, request: Echo) -> None: ...

    async def _private(self, request: Echo) -> None: ...

    async def later(self, request: "Hang") -> Done:
        return Done()

    async def items(self) -> AsyncIterator[int]:
        yield 1

    @property
    def costly(self) -> None:
        raise AssertionError


async def test_handlers_are_found_by_their_annotations() -> None:
    server = Server([Others(), Two()], PATIENT)
    assert set(server._routes) == {"Hang", "Echo"}
    assert len(Server(Service(), PATIENT)._routes) == 6
    with pytest.raises(TypeError, match="two handlers for Echo"):
        Server([Service(), Two()], PATIENT)
    with pytest.raises(TypeError, match="wrong form for Count"):
        Server(WrongForm(), PATIENT)
