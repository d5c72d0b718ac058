"""Events reach subscribers, a full queue drops and counts, and junk is skipped."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import zmq

from sps2.common.bus import wire
from sps2.common.bus.telemetry import Event, Heartbeat, Hub, Publisher, RequestEvent, Subscriber
from sps2.common.config import Bus
from sps2.common.errors import Invalid

from .service import HANG_S

ANY = "tcp://127.0.0.1:0"


@asynccontextmanager
async def hub(publish: str = ANY, subscribe: str = ANY) -> AsyncIterator[tuple[str, str]]:
    forwarder = Hub(publish, subscribe, Bus())
    async with asyncio.timeout(HANG_S):
        addresses = await forwarder.start()
        try:
            yield addresses
        finally:
            await forwarder.close()


@contextmanager
def publisher(address: str) -> Iterator[Publisher]:
    sender = Publisher(address, "decode-0", Bus())
    try:
        yield sender
    finally:
        sender.close()


async def heard(send: Callable[[], None], events: Subscriber, stop: str) -> list[Event]:
    """What arrives while `send` is repeated, until a request event of `stop`."""
    found: list[Event] = []

    async def repeat() -> None:
        while True:
            send()
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as group:
        sending = group.create_task(repeat())
        async for event in events:
            found.append(event)
            if isinstance(event, RequestEvent) and event.stage == stop:
                break
        sending.cancel()
    return found


async def test_events_reach_every_subscriber() -> None:
    event = RequestEvent("r-1", "prefill", time.time(), {"sp_degree": 2.0, "owner": "decode-0"})
    async with hub() as (publish, subscribe), Subscriber(subscribe, Bus()) as one:
        with publisher(publish) as sender:

            def send() -> None:
                sender.heartbeat({"sps2_tokens": 3.0})
                sender.publish(event)

            found = await heard(send, one, "prefill")
            async with Subscriber(subscribe, Bus()) as two:
                assert event in await heard(send, two, "prefill")
            assert event in found
            heartbeat = next(
                each for each in [*found, *await heard(send, one, "prefill")] if each != event
            )
            assert isinstance(heartbeat, Heartbeat)
            assert (heartbeat.service, heartbeat.pid) == ("decode-0", os.getpid())
            assert heartbeat.counters == {"sps2_tokens": 3.0}
            assert heartbeat.rss_bytes > 1 << 20
            assert sender.dropped == 0
            assert not one.counters


async def test_publishing_with_nobody_there() -> None:
    with publisher("tcp://127.0.0.1:1") as sender:
        for each in range(5000):
            sender.publish(RequestEvent(str(each), "queued", 0.0))
        assert sender.dropped == 0
        sender.publish(RequestEvent("x" * (2 << 20), "queued", 0.0))
        assert sender.dropped == 1


async def test_a_stuck_receiver_costs_events_not_time_or_memory() -> None:
    context = zmq.Context()
    stuck = context.socket(zmq.SUB)
    stuck.rcvhwm = 1
    stuck.subscribe(b"")
    stuck.bind(ANY)
    with publisher(stuck.getsockopt_string(zmq.LAST_ENDPOINT)) as sender:
        async with asyncio.timeout(HANG_S):
            while not sender.dropped:
                stuck.poll(0)  # lets it subscribe; it never reads
                sender.publish(RequestEvent("x" * 20_000, "decode", 0.0))
                await asyncio.sleep(0)
    context.destroy(0)


async def test_junk_is_counted_and_skipped() -> None:
    context = zmq.Context()
    source = context.socket(zmq.PUB)
    good = wire.pack(RequestEvent("r", "end", 1.0))
    async with hub() as (publish, subscribe), Subscriber(subscribe, Bus()) as events:
        source.connect(publish)

        def send() -> None:
            source.send(b"\xc1")
            source.send(wire.pack({"type": "Heartbeat", "pid": "x"}))
            source.send(b"")
            source.send_multipart([good, good])
            source.send(bytes(2 << 20))
            source.send(good)

        assert await heard(send, events, "end") == [RequestEvent("r", "end", 1.0)]
        await heard(send, events, "end")
        assert events.counters["bad_events"] >= 4
    context.destroy(0)


async def test_garbage_on_the_ports() -> None:
    async with hub() as addresses, Subscriber(addresses[1], Bus()) as events:
        for address in addresses:
            _, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
            writer.write(b"GET / HTTP/1.1\r\n\r\n" * 50)
            writer.close()
        with publisher(addresses[0]) as sender:
            event = RequestEvent("r", "end", 1.0)
            assert event in await heard(lambda: sender.publish(event), events, "end")


async def test_a_restarted_hub_is_found_again() -> None:
    event = RequestEvent("r", "end", 1.0)
    async with hub() as addresses:
        pass
    async with asyncio.timeout(HANG_S), Subscriber(addresses[1], Bus()) as events:
        with publisher(addresses[0]) as sender:
            for _ in range(2):
                async with hub(*addresses):
                    assert event in await heard(lambda: sender.publish(event), events, "end")


async def test_a_port_in_use_is_named() -> None:
    async with hub() as (publish, subscribe):
        for addresses in ((publish, ANY), (ANY, subscribe)):
            with pytest.raises(Invalid, match="the port is in use"):
                await Hub(*addresses, Bus()).start()
    with pytest.raises(Invalid, match="cannot listen on tcp://"):
        await Hub("tcp://no-such-host.invalid:1", ANY, Bus()).start()
