"""Messages of a socket are taken once, in order, however many come at once and whatever is sent."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import zmq

from sps2.common.bus.mailbox import BURST, Mailbox


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    context = zmq.Context()
    ours, theirs = (zmq.Socket(context, zmq.DEALER) for _ in range(2))
    port = ours.bind_to_random_port("tcp://127.0.0.1")
    theirs.connect(f"tcp://127.0.0.1:{port}")
    try:
        yield ours, theirs
    finally:
        for socket in (ours, theirs):
            socket.close(0)
        context.term()


async def until(done: asyncio.Event) -> None:
    async with asyncio.timeout(60):
        await done.wait()


@pytest.mark.parametrize("count", [1, BURST, 10 * BURST + 3])
async def test_each_message_once_and_in_order(count: int) -> None:
    came, done = list[list[bytes]](), asyncio.Event()

    def take(frames: list[zmq.Frame]) -> None:
        came.append([frame.bytes for frame in frames])
        if len(came) == count:
            done.set()

    async with pair() as (ours, theirs):
        for number in range(count):
            theirs.send_multipart([b"head", str(number).encode()])
        mail = Mailbox(ours, take, Counter())
        await until(done)
        mail.close()
    assert came == [[b"head", str(number).encode()] for number in range(count)]


async def test_answers_do_not_hide_what_comes_meanwhile() -> None:
    rounds, done = 2000, asyncio.Event()
    answers: list[bytes] = []

    async with pair() as (ours, theirs):

        def echo(frames: list[zmq.Frame]) -> None:
            assert server.send([frame.bytes for frame in frames]) is None

        def take(frames: list[zmq.Frame]) -> None:
            answers.append(frames[0].bytes)
            if len(answers) == rounds:
                done.set()
            elif len(answers) + 8 <= rounds:
                client.send([b"%d" % (len(answers) + 7)])

        server, client = Mailbox(ours, echo, Counter()), Mailbox(theirs, take, Counter())
        for number in range(8):
            client.send([b"%d" % number])
        await until(done)
        client.close()
        server.close()
    assert answers == [b"%d" % number for number in range(rounds)]


async def test_a_fault_is_told_and_costs_one_message(caplog: pytest.LogCaptureFixture) -> None:
    came, counters, done = list[bytes](), Counter[str](), asyncio.Event()

    def take(frames: list[zmq.Frame]) -> None:
        came.append(frames[0].bytes)
        if len(came) == 3:
            done.set()
        if len(came) == 1:
            raise LookupError("once")

    async with pair() as (ours, theirs):
        for word in (b"a", b"b", b"c"):
            theirs.send(word)
        assert ours.poll(60_000)
        with caplog.at_level(logging.ERROR):
            mail = Mailbox(ours, take, counters)
            await until(done)
        mail.close()
    assert came == [b"a", b"b", b"c"]
    assert counters == {"faults": 1}
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


async def test_nothing_is_taken_once_closed_and_a_full_queue_is_told() -> None:
    async with pair() as (ours, theirs):
        taken: list[list[zmq.Frame]] = []
        mail = Mailbox(ours, taken.append, Counter())
        theirs.send(b"late")
        mail.close()
        mail.close()
        await asyncio.sleep(0.1)
        assert not taken
        lonely = zmq.Socket(theirs.context, zmq.DEALER)
        lonely.sndhwm = 1
        lonely.linger = 0
        mail = Mailbox(lonely, taken.append, Counter())
        error = mail.send([b"to", b"nobody"])
        assert isinstance(error, zmq.Again)
        mail.close()
