"""A gateway that stands still may have what is asked for; one that has ended has not."""

import asyncio
import socket
from contextlib import contextmanager

import msgspec
import pytest

from sps2.common.bus.peer import Server
from sps2.common.config import Cluster, Gateway
from sps2.common.errors import Invalid, PeerLost
from sps2.common.messages import ShowTrace
from sps2.services.gateway.http import server as http
from sps2.services.gateway.monitoring.cluster import Observer
from sps2.services.gateway.others import gateways
from sps2.services.gateway.others.gateways import Others, place_of
from sps2.services.gateway.others.inside import ReadMetrics
from sps2.services.gateway.repeats import FindAnswer, Known, Repeats, asked

NAMED = f"cmpl-01{10 * '0'}"
"""The id of an answer of gateway 1."""


class Word(msgspec.Struct):
    text: str


REQUEST = asked("", "one", "/", Word("x"))


async def words(text):
    yield Word(text)


async def read(answer):
    return [each.text async for each in answer]


@pytest.fixture
def cluster():
    with http.bind("127.0.0.1", 0) as held:  # names the place where the gateways meet
        yield Cluster(gateway=Gateway(processes=2, port=held.getsockname()[1]))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(gateways, "CONNECT_S", 0.1)
    monkeypatch.setattr(gateways, "DEADLINE_S", 0.1)


@pytest.fixture
def patience(monkeypatch):
    """Who waits for a connection, or for an answer, waits until the test's time-out."""
    monkeypatch.setattr(gateways, "CONNECT_S", 1e6)
    monkeypatch.setattr(gateways, "DEADLINE_S", 1e6)


@contextmanager
def standing_still(cluster):
    """Where gateway 1 listens, nobody accepts: as if it was stopped by SIGSTOP."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + place_of(cluster, 1).removeprefix("ipc://@"))
        listener.listen(8)
        yield


async def test_what_a_gateway_that_stands_still_may_have_is_not_run_again(cluster, impatient):
    others = Others(cluster, 0)
    kept = Repeats(1 << 20, 60.0, others)
    with standing_still(cluster):
        for continued in (None, NAMED):
            with pytest.raises(PeerLost, match=r"gateway\.1, which may have .* try again"):
                await kept.answer(REQUEST, words("again"), Word, continued)
        for named in ("cmpl-00", "cmpl-02"):  # nobody else gave it
            with pytest.raises(Invalid, match="not kept"):
                await kept.answer(REQUEST, words("again"), Word, named + 10 * "0")
    await others.close()


async def test_nor_is_what_a_connected_one_may_have(cluster, impatient):
    class Silent:
        async def find_answer(self, request: FindAnswer) -> Known:
            await asyncio.Event().wait()
            raise AssertionError

    server = Server(Silent(), cluster.bus)
    await server.start(place_of(cluster, 1))
    others = Others(cluster, 0)
    await others.peers[1].connect()
    with pytest.raises(PeerLost, match=r"gateway\.1, which may have"):
        await Repeats(1 << 20, 60.0, others).answer(REQUEST, words("again"), Word)
    await others.close()
    await server.close()


async def test_what_an_ended_gateway_had_is_run_again_at_once(cluster, patience):
    both = [Others(cluster, number) for number in (0, 1)]
    here, there = (Repeats(1 << 20, 60.0, each) for each in both)
    assert await read(await there.answer(REQUEST, words("first"), Word)) == ["first"]
    server = Server(there, cluster.bus)
    await server.start(place_of(cluster, 1))
    assert await read(await here.answer(REQUEST, words("again"), Word)) == ["first"]
    await server.close()
    with pytest.raises(Invalid, match="not kept"):
        await here.answer(REQUEST, words("again"), Word, NAMED)
    assert await read(await here.answer(REQUEST, words("again"), Word)) == ["again"]
    for each in both:
        await each.close()


async def test_nobody_waits_for_a_gateway_that_has_ended(cluster, patience):
    others = Others(cluster, 0)
    with pytest.raises(PeerLost, match=r"gateway\.1"):
        await others.call(others.peers[1], ReadMetrics())
    observer = Observer(cluster, "tiny", None, None, None, None, others)
    status = await observer._gateway(1)
    assert (status.state, status.waiting_for) == ("lost", "no answer")
    await others.close()


async def test_a_trace_that_a_silent_gateway_may_have_is_not_called_unknown(
    cluster, impatient, door
):
    service = door.parts._service
    service._others = others = Others(cluster, 0)
    with standing_still(cluster), pytest.raises(PeerLost, match=r"gateway\.1, which may have"):
        await service.show_trace(ShowTrace("nothing"))
    with pytest.raises(Invalid, match="no trace of a request 'nothing'"):
        await service.show_trace(ShowTrace("nothing"))
    await others.close()
