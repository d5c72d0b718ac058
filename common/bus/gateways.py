"""The gateways of a cluster as one: a call goes to one that answers."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import zmq.asyncio

from sps2.common.bus.peer import Peer
from sps2.common.config import Bus
from sps2.common.errors import Cancelled, Invalid, PeerLost, ServiceError
from sps2.common.messages import Request, Stream

R = TypeVar("R")
I = TypeVar("I")  # noqa: E741

GATEWAY = "gateway"
"""What errors call any of them."""


class Gateways:
    """Calls one of several gateways, each time one that is connected.

    A call whose gateway is lost before there is an answer goes to another: what a gateway began for
    it ended with the gateway. With one gateway this is a `Peer`.

    Args:
        addresses: of the gateways on the bus.
        connect_s: see `Peer`.

    Raises:
        Invalid: there is no address, or a wrong one, or the bus's keys cannot be read.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        bus: Bus,
        context: zmq.asyncio.Context | None = None,
        *,
        connect_s: float | None = None,
    ) -> None:
        if not addresses:
            raise Invalid("give the address of a gateway, such as tcp://127.0.0.1:8001")
        self._peers = [
            Peer(each, bus, GATEWAY, context, connect_s=connect_s)
            for each in random.sample(addresses, len(addresses))
        ]

    async def call(self, request: Request[R], deadline_s: float | None = None) -> R:
        """As `Peer.call`; each gateway that is tried has the whole of `deadline_s`."""
        left = [*self._peers]
        while True:
            try:
                async with asyncio.timeout(deadline_s):
                    peer = await _connected(left)
            except TimeoutError:
                raise Cancelled(f"no gateway answered within {deadline_s} s") from None
            try:
                return await peer.call(request, deadline_s)
            except PeerLost as lost:
                _try_others(left, peer, lost)

    @asynccontextmanager
    async def stream(self, request: Stream[I]) -> AsyncIterator[AsyncIterator[I]]:
        """As `Peer.stream`; but the block begins with the first item, or the end."""
        left = [*self._peers]
        async with AsyncExitStack() as stack:
            while True:
                peer = await _connected(left)
                try:
                    async with AsyncExitStack() as opening:
                        items = await opening.enter_async_context(peer.stream(request))
                        first = [each async for each in _first(items)]
                        stack.push_async_exit(opening.pop_all())
                    break
                except PeerLost as lost:
                    _try_others(left, peer, lost)
            yield _after(first, items)

    async def close(self) -> None:
        """Disconnect; calls in work raise PeerLost."""
        await asyncio.gather(*(peer.close() for peer in self._peers))


async def _connected(peers: Sequence[Peer]) -> Peer:
    """The first of the peers that is connected, else the one that is so first.

    Raises:
        ServiceError: none can be connected; the error of the last one.
    """
    for peer in peers:
        if peer.is_connected or len(peers) == 1:
            return peer
    tries = {asyncio.create_task(peer.connect()): peer for peer in peers}
    failure: BaseException | None = None
    try:
        while waiting := [each for each in tries if not each.done()] or None:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                failure = each.exception()
                if failure is None:
                    return tries[each]
                if not isinstance(failure, ServiceError):
                    raise failure
    finally:
        for each in tries:
            each.cancel()
    assert failure is not None
    raise failure


def _try_others(left: list[Peer], lost: Peer, error: PeerLost) -> None:
    """Leave a lost gateway out. Raises `error` if none is left, or it is of another service."""
    left.remove(lost)
    if not left or error.peer not in (GATEWAY, lost.address):
        raise error


async def _first(items: AsyncIterator[I]) -> AsyncIterator[I]:
    async for item in items:
        yield item
        return


async def _after(first: Sequence[I], items: AsyncIterator[I]) -> AsyncIterator[I]:
    for item in first:
        yield item
    async for item in items:
        yield item
