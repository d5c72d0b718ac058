"""Links that are lost or closed, and peers that are gone: what waits ends, and links come back."""

import asyncio

import pytest
import torch

from sps2.common.errors import PeerLost
from sps2.common.messages import Peer
from sps2.common.transport import plane as planes
from sps2.common.transport.interfaces import Stale
from sps2.common.transport.plane import Plane

from ...waiting import until
from .test_plane import MakePlanes, kv, noise


async def test_a_goodbye_is_no_loss_but_ends_the_waiting(make_planes: MakePlanes) -> None:
    a, b = await make_planes()
    lost: list[str] = []
    gone: list[str] = []
    a.on_lost(lost.append)
    a.on_gone(gone.append)
    tensor = torch.ones(1)
    inbox = a.open("r", 0)
    b.open("r", 0)
    await b.send(a.name, kv(tensor), (tensor,))
    await a.send(b.name, kv(tensor), (tensor,))
    waiting = asyncio.create_task(inbox.recv("kv", 0, 1, b.name))
    await asyncio.sleep(0.01)
    await b.close()
    with pytest.raises(PeerLost):
        await waiting
    assert float((await inbox.recv("kv", 0, 0, b.name))[0]) == 1
    with pytest.raises(PeerLost):
        await a.send(b.name, kv(tensor), (tensor,))
    assert lost == []
    assert gone == [b.name]
    assert a.counters["peers_lost"] == 0


async def linked(make_planes: MakePlanes) -> tuple[Plane, Plane]:
    """Two planes with links both ways."""
    a, b = await make_planes()
    for here, there in ((a, b), (b, a)):
        await arrives(here, there)
    return a, b


async def arrives(here: Plane, there: Plane, request: str = "s") -> None:
    """A frame from here is there."""
    tensor = noise(100_000)
    await there.reach([here.peer])
    with there.open(request, 0) as inbox:
        await here.send(there.name, kv(tensor, request=request), (tensor,))
        assert torch.equal((await inbox.recv("kv", 0, 0, here.name))[0], tensor)


async def test_a_broken_link_is_a_loss_until_it_is_wanted_again(make_planes: MakePlanes) -> None:
    a, b = await linked(make_planes)
    lost: list[str] = []
    a.on_lost(lost.append)
    tensor = torch.ones(1)
    b.forget(a.name)
    assert a.name not in b.links
    await until(lambda: lost)
    with pytest.raises(PeerLost):
        await a.send(b.name, kv(tensor), (tensor,))
    with pytest.raises(PeerLost, match="forgot"):
        await b.send(a.name, kv(tensor), (tensor,))
    with pytest.raises(PeerLost, match="forgot"), b.open("r", 0) as inbox:
        await inbox.recv("kv", 0, 0, a.name)
    assert lost == [b.name]

    a.introduce(b.peer)
    with pytest.raises(PeerLost), a.open("r", 1) as inbox:  # before there is a link
        await inbox.recv("kv", 0, 0, b.name)
    await a.send(b.name, kv(tensor), (tensor,))
    await arrives(a, b)
    await arrives(b, a)
    assert lost == [b.name]


async def test_who_waited_before_a_loss_is_not_served_after_it(make_planes: MakePlanes) -> None:
    a, b = await linked(make_planes)
    tensor = torch.ones(1)
    with b.open("r", 0) as inbox:
        await a.send(b.name, kv(tensor, at=1), (tensor,))
        assert float((await inbox.recv("kv", 0, 1, a.name))[0]) == 1
        waiting = asyncio.create_task(inbox.recv("kv", 0, 2, a.name))
        await asyncio.sleep(0)
        b.forget(a.name)
        with pytest.raises(PeerLost):
            await waiting
        await until(lambda: a.counters["peers_lost"])
        a.introduce(b.peer)
        await arrives(a, b)
        with pytest.raises(PeerLost, match="is back"):  # a frame may be missing
            await inbox.recv("kv", 0, 3, a.name)


async def test_losses_on_both_sides_again_and_again(make_planes: MakePlanes) -> None:
    a, b = await linked(make_planes)
    for round_ in range(8):
        for plane, other in ((a, b), (b, a))[round_ % 2 :]:
            plane.forget(other.name)
        await asyncio.sleep(0.001 * (round_ % 3))
        for plane, other in ((a, b), (b, a)):
            plane.introduce(other.peer)

        async def eventually(here: Plane, there: Plane, request: str) -> None:
            while True:
                try:
                    return await arrives(here, there, request)
                except PeerLost:
                    await asyncio.sleep(0.001)
                    here.introduce(there.peer)

        await asyncio.gather(eventually(a, b, "x"), eventually(b, a, "y"))
    assert not a.counters["bad_frames"] + b.counters["bad_frames"]


async def test_a_side_that_goes_on_losing_its_links_is_dialled_again(
    make_planes: MakePlanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both dial at once on a busy machine: each attempt may meet a later generation."""
    a, b = await make_planes()
    admit, generations = b.admit, iter([1, 2, 3])

    def late(peer: Peer, generation: int) -> None:
        if generation < (now := next(generations, generation)):
            raise Stale("its links were lost again", now)
        admit(peer, generation)

    monkeypatch.setattr(b, "admit", late)
    with b.open("r", 0) as inbox:
        await a.send(b.name, kv(torch.ones(1)), (torch.ones(1),))
        assert await inbox.recv("kv", 0, 0, a.name)


async def test_those_gone_for_longest_are_forgotten(
    make_planes: MakePlanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planes, "MAX_PEERS", 4)
    a, *others = await make_planes(8)
    tensor = torch.ones(1)
    for other in others:
        other.open("r", 0)
        await a.send(other.name, kv(tensor), (tensor,))
        a.gone(other.name, "of a test")
    with pytest.raises(PeerLost, match="not known"):
        await a.send(others[0].name, kv(tensor), (tensor,))
    with pytest.raises(PeerLost, match="of a test"):
        await a.send(others[-1].name, kv(tensor), (tensor,))
