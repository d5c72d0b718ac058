"""A link that is cut between two hosts, whose kernels are told nothing, is a loss on both sides."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from links_network import Host, Network, Unavailable, inside, network

from sps2.common.errors import PeerLost
from sps2.common.transport import hello
from sps2.common.transport.backends import BackendName
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane

SILENCE_S = 2.0
PATIENCE_S = 60.0
"""Longer than any machine is busy; a hang takes for ever."""
TENSORS = (torch.ones(1 << 20),)


class Site:
    """A plane on a host, with a thread and a loop of its own."""

    def __init__(self, host: Host, backend: BackendName) -> None:
        self._loop = asyncio.new_event_loop()
        started: Future[Plane] = Future()
        self._thread = threading.Thread(target=self._run, args=(host, backend, started))
        self._thread.start()
        self.plane = started.result(PATIENCE_S)

    def _run(self, host: Host, backend: BackendName, started: "Future[Plane]") -> None:
        async def start() -> Plane:
            plane = Plane(f"{host.address}/1", backend)
            await plane.start(host.address)
            return plane

        with inside(host):
            asyncio.set_event_loop(self._loop)
            try:
                started.set_result(self._loop.run_until_complete(start()))
            except BaseException as error:
                started.set_exception(error)
                raise
            self._loop.run_forever()

    def begin(self, work: Callable[[Plane], Any]) -> "Future[Any]":
        """Run a coroutine function of the plane there."""
        return asyncio.run_coroutine_threadsafe(work(self.plane), self._loop)

    def close(self) -> None:
        self.begin(Plane.close).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


Sites = tuple[Site, Site, Network]


@pytest.fixture(params=["tcp", "ucx"])
def sites(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    """Two planes with links both ways."""
    monkeypatch.setattr(hello, "SILENCE_S", SILENCE_S)
    try:
        with network(["alpha", "beta"]) as built:
            alpha, beta = (Site(host, request.param) for host in built.hosts.values())
            try:
                for here, there in ((alpha, beta), (beta, alpha)):
                    here.plane.introduce(there.plane.peer)
                    there.begin(lambda plane: asyncio.sleep(0, plane.open("r", 0))).result()
                    here.begin(sending(there, 0)).result(PATIENCE_S)
                monkeypatch.setattr(hello, "DIAL_S", SILENCE_S)
                yield alpha, beta, built
            finally:
                for site in (alpha, beta):
                    site.close()
    except Unavailable as error:
        pytest.skip(f"hosts need network namespaces, which need root and iproute2: {error}")


def frame(at: int, request: str = "r") -> Frame:
    return frame_for("kv", (request,), (0,), 0, at, TENSORS)


def sending(there: Site, at: int) -> Callable[[Plane], Any]:
    return lambda plane: plane.send(there.plane.name, frame(at), TENSORS)


def receiving(there: Site, request: str) -> Callable[[Plane], Any]:
    async def receive(plane: Plane) -> None:
        with plane.open(request, 0) as inbox:
            await inbox.recv("kv", 0, 1, there.plane.name)

    return receive


def test_a_cut_ends_whoever_sends_or_waits(sites: Sites) -> None:
    alpha, beta, built = sites
    built.cut("beta")
    waiting = beta.begin(receiving(alpha, "s"))
    sends = [alpha.begin(sending(beta, at)) for at in range(1, 30)]
    with pytest.raises(PeerLost):
        waiting.result(PATIENCE_S)
    errors = [each.exception(PATIENCE_S) for each in sends]
    while errors and errors[0] is None:  # it had left: the kernel keeps a few megabytes
        errors.pop(0)
    assert errors
    for error in errors:
        assert isinstance(error, PeerLost)
        assert beta.plane.name in str(error)

    alpha.plane.introduce(beta.plane.peer)
    with pytest.raises(PeerLost, match="cannot reach"):  # as long as the link is cut
        alpha.begin(sending(beta, 1)).result(PATIENCE_S)
    built.restore("beta")

    async def reached(plane: Plane) -> None:
        while True:
            try:
                return await plane.reach([beta.plane.peer])
            except PeerLost:
                await asyncio.sleep(0.05)

    alpha.begin(reached).result(PATIENCE_S)
    beta.plane.introduce(alpha.plane.peer)
    beta.begin(lambda plane: plane.reach([alpha.plane.peer])).result(PATIENCE_S)
    inbox = beta.begin(lambda plane: asyncio.sleep(0, plane.open("t", 0))).result(PATIENCE_S)
    again = beta.begin(lambda plane: inbox.recv("kv", 0, 1, alpha.plane.name))
    alpha.begin(lambda plane: plane.send(beta.plane.name, frame(1, "t"), TENSORS)).result(
        PATIENCE_S
    )
    again.result(PATIENCE_S)


def test_an_idle_link_that_is_cut_is_noticed_by_both(sites: Sites) -> None:
    alpha, beta, built = sites
    waits = [site.begin(receiving(other, "s")) for site, other in ((alpha, beta), (beta, alpha))]
    built.cut("alpha")
    for each in waits:
        with pytest.raises(PeerLost):
            each.result(PATIENCE_S)
