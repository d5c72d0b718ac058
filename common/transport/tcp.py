"""The TCP backend: tensors are sent from their memory and received into it, without copies.

Encrypted links are TLS over the same connections, with the same frames in it.
"""

import asyncio

from sps2.common import messages
from sps2.common.errors import Invalid
from sps2.common.transport import hello
from sps2.common.transport.interfaces import Link, Sink
from sps2.common.transport.listener import Listener
from sps2.common.transport.tcp_link import TcpLink
from sps2.common.transport.tcp_receiver import TcpReceiver
from sps2.common.transport.tls_transport import TlsTransport

GOODBYE_S = 1.0


class TcpBackend:
    """One listener, and one connection per peer and direction.

    On the wire a frame is a prefix (`tcp_link.PREFIX`), its header, its payload, and one byte: 0 if
    the payload is valid, 1 if it was cancelled on the way.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._listener = Listener(sink, self._admit)
        self._address = ""
        self._links: dict[str, TcpLink] = {}
        self._receivers: dict[str, TcpReceiver] = {}
        self._dropped = asyncio.Event()

    async def start(self, host: str, port: int) -> str:
        scheme = "tcp+tls" if self._sink.identity else "tcp"
        self._address = f"{scheme}://{await self._listener.start(host, port)}"
        return self._address

    async def dial(self, peer: messages.Peer, generation: int) -> Link:
        own, token = (self._sink.name, self._address), self._sink.token
        greeting = hello.Hello(*own, "tcp", token, generation=generation)
        connection, _ = await hello.dial(peer, greeting, self._sink.identity)
        link = self._links[peer.name] = TcpLink(peer.name, connection, self._sink)
        return link

    async def _admit(self, guest: hello.Guest) -> None:
        peer = guest.hello.name
        if guest.hello.backend != "tcp":
            raise Invalid(f"this side speaks tcp, {peer} speaks {guest.hello.backend}")
        self._sink.admit(guest.peer, guest.hello.generation)
        receiver = self._receivers[peer] = TcpReceiver(peer, self._sink)
        try:
            await guest.welcome(hello.Welcome(self._sink.name))
            if guest.connection.is_encrypted:
                TlsTransport(guest.connection, receiver)
            else:
                loop = asyncio.get_running_loop()
                await loop.connect_accepted_socket(lambda: receiver, guest.connection.plain)
        except BaseException:
            if self._receivers.get(peer) is receiver:  # there may be a later link already
                self._sink.gone(peer, "its handshake broke off")
            raise

    def drop(self, peer: str) -> None:
        if link := self._links.pop(peer, None):
            link.close()
        if receiver := self._receivers.pop(peer, None):
            receiver.close()
        self._dropped.set()

    async def close(self) -> None:
        await self._listener.close()
        for link in self._links.values():
            link.goodbye()
        for receiver in self._receivers.values():
            receiver.goodbye()
        try:
            async with asyncio.timeout(GOODBYE_S):
                while self._links or self._receivers:  # until the others hang up
                    self._dropped.clear()
                    await self._dropped.wait()
        except TimeoutError:
            pass
        for peer in {*self._links, *self._receivers}:
            self._sink.gone(peer, "this side closed", goodbye=True)
            self.drop(peer)
