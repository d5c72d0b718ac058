"""Calls and streams whose other side dies, falls silent, closes, or is not there yet."""

import asyncio
import subprocess
import sys
import textwrap

import pytest

from sps2.common.bus import wire
from sps2.common.bus.link import Link
from sps2.common.bus.peer import Peer, Server
from sps2.common.bus.wire import Kind
from sps2.common.errors import Cancelled, Internal, Invalid, PeerLost

from ...waiting import until
from .service import (
    HANG_S,
    HASTY,
    PATIENT,
    Count,
    Echo,
    Hang,
    Keep,
    Number,
    Service,
    Text,
    background,
    raw,
    raw_server,
    reached,
    served,
)

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
        from sps2.common.bus.peer import Server
        server = Server(Service(), Bus(heartbeat_s=20.0))
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
        from sps2.common.bus.peer import Peer
        peer = Peer(sys.argv[1], Bus(heartbeat_s=20.0))
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


async def test_a_killed_server_is_noticed_without_waiting_for_heartbeats() -> None:
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


async def test_a_killed_client_is_noticed_without_waiting_for_heartbeats() -> None:
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
            with pytest.raises(
                PeerLost, match="scheduler was lost: it was silent for 3 heartbeats"
            ):
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


async def test_heartbeats_keep_a_long_call_alive() -> None:
    async with (
        served(HASTY) as (_, server),
        reached(server.address, HASTY) as peer,
        background(peer.call(Hang("a"))) as call,
        peer.stream(Keep("b")) as items,
    ):
        await anext(items)
        await asyncio.sleep(12 * HASTY.heartbeat_s)
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


async def test_a_server_that_closes_is_lost_by_the_name_that_its_callers_know() -> None:
    async with served() as (service, server):
        service.may_end.clear()
        peer = Peer(server.address, PATIENT, "scheduler")
        async with background(peer.call(Hang("a"))) as call:
            await until(lambda: service.started)
            async with background(server.close()) as closing:
                with pytest.raises(PeerLost, match="scheduler was lost") as caught:
                    await call
                service.may_end.set()
                await closing
        assert caught.value.peer == "scheduler"
        await peer.close()


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


async def test_a_port_that_there_is_none_of() -> None:
    with pytest.raises(Invalid, match="tcp://localhost:65536"):
        Peer("tcp://localhost:65536", PATIENT)


async def test_a_call_waits_behind_a_proxy_that_accepts_for_a_server_that_is_away() -> None:
    """As docker-proxy, ssh -L and HAProxy do: such a handshake breaks off, again and again."""
    broken = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal broken
        broken += 1
        writer.close()

    async with asyncio.timeout(HANG_S):
        async with served() as (_, server):
            address = server.address
            peer = Peer(address, PATIENT)
            assert (await peer.call(Echo("before"))).text == "before"
        await until(lambda: peer.counters["losses"])
        proxy = await asyncio.start_server(accept, "127.0.0.1", int(address.rpartition(":")[2]))
        async with background(peer.call(Echo("after"))) as call:
            await until(lambda: broken >= 5 or call.done())
            assert not call.done()
            proxy.close()
            await proxy.wait_closed()
            async with served(address=address):
                assert (await call).text == "after"
        await peer.close()


# --- faults of this side ---


async def test_a_fault_of_a_connection_fails_who_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def connect(link: Link) -> int:
        await asyncio.sleep(0)
        raise OSError("too many open files")

    async with asyncio.timeout(HANG_S), served() as (_, server):
        peer = Peer(server.address, PATIENT, name="scheduler")
        with monkeypatch.context() as patch:
            patch.setattr(Link, "connect", connect)
            calls = [asyncio.create_task(peer.call(Echo("a"))) for _ in range(3)]
            for call in calls:
                with pytest.raises(Internal, match="the connection to scheduler failed"):
                    await call
        assert "too many open files" in caplog.text
        assert (await peer.call(Echo("b"))).text == "b"
        await peer.close()
