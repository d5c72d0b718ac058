"""The way to a peer is measured."""

import asyncio

import pytest

from sps2.common.errors import PeerLost
from sps2.common.transport import ping
from sps2.common.transport.ping import Pings

from .conftest import MakePlanes


async def test_the_way_to_a_peer_is_measured(make_planes: MakePlanes) -> None:
    one, other = await make_planes()
    pings, _ = Pings(one), Pings(other)
    way = await pings.measure(other.peer)
    assert way.sent_gbit > 0
    assert way.received_gbit > 0
    assert 0 < way.latency_s < 5
    assert not pings._waiting


async def test_both_can_measure_at_once(make_planes: MakePlanes) -> None:
    one, other, third = await make_planes(3)
    pings = [Pings(each) for each in (one, other, third)]
    ways = await asyncio.gather(
        pings[0].measure(other.peer), pings[1].measure(one.peer), pings[2].measure(one.peer)
    )
    assert all(way.sent_gbit > 0 for way in ways)


async def test_a_peer_that_does_not_answer_is_an_error(
    make_planes: MakePlanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ping, "ANSWER_S", 0.2)
    one, silent, gone = await make_planes(3)
    pings = Pings(one)
    with pytest.raises(PeerLost, match="does not answer"):
        await pings.measure(silent.peer)
    await gone.close()
    with pytest.raises(PeerLost):
        await pings.measure(gone.peer)


async def test_an_answer_has_a_largest_size(
    make_planes: MakePlanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a peer asks for."""
    one, other = await make_planes()
    pings, _ = Pings(one), Pings(other)
    monkeypatch.setattr(ping, "MOST_BYTES", 1000)
    await pings._round(other.name, 0, 1 << 31)
    assert 1000 <= one.counters["pong_received"] < 2000
