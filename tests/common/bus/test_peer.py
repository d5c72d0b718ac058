"""Calls and streams, their ends, cancels and deadlines, over real sockets on both loops."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import zmq

from sps2.common.bus import wire
from sps2.common.bus.peer import Peer, Server
from sps2.common.bus.wire import Kind
from sps2.common.errors import Cancelled, Internal, Invalid, PeerLost, Refused, ServiceError
from sps2.common.messages import Done

from ...waiting import until
from .service import (
    HANG_S,
    PATIENT,
    Count,
    Echo,
    Fail,
    Hang,
    Keep,
    Number,
    Service,
    Text,
    Unknown,
    background,
    raw,
    reached,
    served,
)

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
