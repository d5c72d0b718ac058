"""The UCX backend: RDMA and CUDA where the library supports them, else TCP."""

import asyncio
import secrets
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from sps2.common import messages
from sps2.common.errors import Invalid, PeerLost
from sps2.common.transport import hello
from sps2.common.transport.connection import Connection
from sps2.common.transport.interfaces import Link, Sink
from sps2.common.transport.lifeline import Lifeline, Received, no_receipts
from sps2.common.transport.listener import Listener
from sps2.common.transport.ucx_driver import Driver, Endpoint
from sps2.common.transport.ucx_link import SLOT_BITS, UcxLink
from sps2.common.transport.ucx_receiver import UcxReceiver

GOODBYE_S = 1.0


class UcxBackend:
    """One worker, and one endpoint per peer for both directions.

    A link begins with a TCP handshake that exchanges worker addresses and assigns the dialler a
    random slot of tags: a worker accepts messages from anybody who finds its port, but only the
    dialler knows the tags that are listened to. The connection stays open: its end shows that the
    peer is gone, whether UCX notices or not.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._listener = Listener(sink, self._admit)
        self._address = ""
        self._driver: Driver | None = None
        self._endpoints: dict[str, Endpoint] = {}
        self._links: dict[str, UcxLink] = {}
        self._receivers: dict[str, UcxReceiver] = {}
        self._lifelines: dict[str, list[Lifeline]] = {}
        self._dropped = asyncio.Event()

    async def start(self, host: str, port: int) -> str:
        self._driver = Driver(host, self._sink.counters)
        self._address = f"ucx://{await self._listener.start(host, port)}"
        return self._address

    async def dial(self, peer: messages.Peer, generation: int) -> Link:
        assert self._driver is not None
        own, worker = (self._sink.name, self._address), self._driver.address
        token = self._sink.token
        greeting = hello.Hello(*own, "ucx", token, worker, generation=generation)
        connection, welcome = await hello.dial(peer, greeting, self._sink.identity)
        name = peer.name
        try:
            endpoint = self._endpoint(name, welcome.worker)
        except ConnectionError as error:
            connection.close()
            raise PeerLost(name, f"cannot reach {name}: {error}") from error
        link = self._links[name] = UcxLink(name, endpoint, welcome.slot, self._sink)
        self._watch(name, connection, link.received)
        return link

    async def _admit(self, guest: hello.Guest) -> None:
        assert self._driver is not None
        peer, slot = guest.hello.name, secrets.randbits(SLOT_BITS)
        if guest.hello.backend != "ucx":
            raise Invalid(f"this side speaks ucx, {peer} speaks {guest.hello.backend}")
        self._sink.admit(guest.peer, guest.hello.generation)
        receiver = None
        try:
            endpoint = self._endpoint(peer, guest.hello.worker)
            say = self._watch(peer, guest.connection).write
            receiver = self._receivers[peer] = UcxReceiver(peer, endpoint, slot, self._sink, say)
            receiver.start()
            welcome = hello.Welcome(self._sink.name, self._driver.address, slot)
            await guest.welcome(welcome)
        except BaseException:
            if self._receivers.get(peer) is receiver:  # there may be a later link already
                self._sink.gone(peer, "its handshake broke off")
            raise
        if self._receivers.get(peer) is not receiver:
            raise Invalid(f"{peer} was lost, or has opened another link")

    def drop(self, peer: str) -> None:
        if link := self._links.pop(peer, None):
            link.close()
        if receiver := self._receivers.pop(peer, None):
            receiver.close()
        for lifeline in self._lifelines.pop(peer, ()):
            lifeline.close()
        if endpoint := self._endpoints.pop(peer, None):
            endpoint.close()
        self._dropped.set()

    async def close(self) -> None:
        await self._listener.close()
        for link in self._links.values():
            link.goodbye()
        for peer in self._receivers:
            self._say_goodbye(peer)
        try:
            async with asyncio.timeout(GOODBYE_S):
                while self._endpoints:  # until the others hang up
                    self._dropped.clear()
                    await self._dropped.wait()
        except TimeoutError:
            pass
        for peer in list(self._endpoints):
            self._say_goodbye(peer)
            self._sink.gone(peer, "this side closed", goodbye=True)
            self.drop(peer)
        if self._driver is not None:
            await self._driver.close()

    def _endpoint(self, peer: str, worker: bytes) -> Endpoint:
        assert self._driver is not None
        if peer not in self._endpoints:
            lost = partial(self._sink.gone, peer, "its UCX endpoint broke")
            self._endpoints[peer] = self._driver.connect(worker, lost)
        return self._endpoints[peer]

    def _watch(
        self, peer: str, connection: Connection, received: Received = no_receipts
    ) -> Lifeline:
        def ended(why: str, goodbye: bool) -> None:
            self._sink.gone(peer, why, goodbye=goodbye)

        lifeline = Lifeline(connection, ended, received)
        self._lifelines.setdefault(peer, []).append(lifeline)
        return lifeline

    def _say_goodbye(self, peer: str) -> None:
        for lifeline in self._lifelines.get(peer, ()):
            lifeline.goodbye()


def find_fault() -> str:
    """Check UCX by a message from a worker to itself; returns why it cannot be used, or ""."""
    with ThreadPoolExecutor(1, "ucx check") as thread:  # a loop may be running in this one
        return thread.submit(asyncio.run, _loop_back()).result()


async def _loop_back() -> str:
    try:
        driver = Driver("127.0.0.1", Counter())
    except Exception as error:  # whatever keeps the library from loading or starting
        return f"{type(error).__name__}: {error}"
    arrived: asyncio.Queue[str] = asyncio.Queue()
    endpoint = None
    try:
        endpoint = driver.connect(driver.address, lambda: arrived.put_nowait("it broke"))
        memory = memoryview(bytearray(4))
        async with asyncio.timeout(5):
            early = endpoint.recv(memory, 1, arrived.put_nowait)
            endpoint.send(b"sps2", 1, lambda error: None)
            fault = "" if early else await arrived.get()
        return fault or ("" if bytes(memory) == b"sps2" else "a message to itself came out wrong")
    except (ConnectionError, TimeoutError) as error:
        return f"no message to itself came through: {error!r}"
    finally:
        if endpoint is not None:
            endpoint.close()
        await driver.close()
