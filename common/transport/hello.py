"""The handshake that opens a link between processes, for the dialler and the acceptor.

The acceptor speaks first, with a nonce for the dialler's proof (`proof`). The dialler's Hello and
the acceptor's Welcome follow, each with a proof after it, or a Refusal.

Where links are encrypted, the first message only says so: TLS follows, and within it all of that.
Each side knows from its own configuration which it is to be, so that nobody on the way can talk
both out of it.
"""

import asyncio
import socket as socket_options
import struct
from socket import IPPROTO_TCP, SO_KEEPALIVE, SOL_SOCKET, TCP_NODELAY, socket
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from sps2.common import messages
from sps2.common.errors import Invalid, PeerLost
from sps2.common.transport.connection import Connection
from sps2.common.transport.interfaces import Behind
from sps2.common.transport.proof import MAC_BYTES, NONCE_BYTES, TOKEN_BYTES, Proof, new_nonce
from sps2.common.validation import MALFORMED

if TYPE_CHECKING:
    from sps2.common.transport.identity import Identity

MAGIC = b"SPS2"
VERSION = 3
MAX_HELLO_BYTES = 4096
DIAL_S = 10.0
SILENCE_S = 10.0
"""A link is lost when its other end has acknowledged nothing for this long."""
ATTEMPTS = 3

_PREFIX = struct.Struct("<4sHH")  # magic, version, length of what follows

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Token = Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]


class Challenge(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The acceptor's first message, to every dialler."""

    nonce: Nonce
    is_encrypted: bool = False
    """Whether links to it are; outside of TLS, that TLS is to begin."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Introduces the dialler; `worker` is its UCX worker address.

    `generation` counts, as far as the dialler knows, how often the two lost their links. `dial`
    fills in the nonce for the acceptor's proof, and masks the dialler's token.
    """

    name: Name
    address: Annotated[str, Meta(max_length=256)]
    backend: Literal["ucx", "tcp"]
    token: Token
    worker: Annotated[bytes, Meta(max_length=2048)] = b""
    nonce: Nonce = bytes(NONCE_BYTES)
    generation: Annotated[int, Meta(ge=0)] = 0


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Accepts the dialler; `slot` is its part of the acceptor's UCX tags."""

    name: Name
    worker: Annotated[bytes, Meta(max_length=2048)] = b""
    slot: Annotated[int, Meta(ge=0, lt=1 << 56)] = 0


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Refuses the dialler; without a proof, since the two may share no secret.

    `generation` is the current one if the dialler's is over. A dialler that wants an encrypted link
    refuses the acceptor of plain ones in the same way, in place of its Hello.
    """

    reason: Annotated[str, Meta(max_length=512)]
    generation: Annotated[int, Meta(ge=0)] = 0


Message = TypeVar("Message", bound=msgspec.Struct)


class Guest:
    """A dialler that has authenticated itself, and waits for an answer on `connection`."""

    def __init__(self, hello: Hello, connection: Connection, token: bytes) -> None:
        self.hello = hello
        self.connection = connection
        self._proof = Proof(token, hello.nonce)

    @property
    def peer(self) -> messages.Peer:
        """The dialler's name, address and token."""
        return messages.Peer(self.hello.name, self.hello.address, self.hello.token)

    async def welcome(self, answer: Welcome) -> None:
        """Accept the dialler."""
        await _write(self.connection, answer, self._proof)


async def dial(
    peer: messages.Peer, hello: Hello, identity: "Identity | None" = None
) -> tuple[Connection, Welcome]:
    """Connect to `peer.address` ("tcp://host:port") and shake hands.

    Args:
        identity: of the dialler, if links are encrypted.

    Raises:
        PeerLost: nobody answers, another process answers, or the peer refuses.
        Behind: the peer refuses since the generation is over.
    """
    host, port = parse(peer.address)
    name = peer.name
    for attempt in range(ATTEMPTS):
        link = socket()
        connection = Connection(link)
        try:
            async with asyncio.timeout(DIAL_S):
                prepare(link)
                await asyncio.get_running_loop().sock_connect(link, (host, port))
                return connection, await _introduce(peer, hello, connection, identity)
        except BaseException as error:
            connection.close()
            if isinstance(error, ConnectionResetError) and attempt + 1 < ATTEMPTS:
                continue  # a crowded listener drops its oldest handshake
            if isinstance(error, OSError | Invalid):
                why = str(error) or f"no answer in {DIAL_S:g} s"
                raise PeerLost(name, f"cannot reach {name} at {peer.address}: {why}") from error
            raise
    raise AssertionError("the last attempt returns or raises")


async def accept(link: Connection, token: bytes, identity: "Identity | None" = None) -> Guest:
    """Read and check the Hello on a connection that the plane of `token` has just accepted.

    Args:
        identity: of the acceptor, if links are encrypted.

    Raises:
        Invalid: garbage, another version, or a dialler that was not introduced; it gets a Refusal.
        ConnectionError: the other side closed, or has no certificate of this cluster.
    """
    challenge = Challenge(new_nonce(), identity is not None)
    await _write(link, challenge)
    if identity is not None:
        if not await link.starts_tls():
            await _body(link)
            await link.read(MAC_BYTES)  # an end before all is read might overtake the Refusal
            why = "links to it are encrypted, and the dialler's are not: it is of an older version"
            why += ", has no keys, or another `encryption` in its configuration"
            await refuse(link, why)
            raise Invalid(why)
        await link.secure(identity.accepting, is_acceptor=True)
        challenge = Challenge(new_nonce(), True)
        await _write(link, challenge)
    proof = Proof(token, challenge.nonce)
    body = await _body(link)
    mac = await link.read(MAC_BYTES)
    try:
        proof.check(body, mac)
        hello: Hello | Refusal = _decode(body, Hello | Refusal)  # type: ignore[arg-type]
        if isinstance(hello, Refusal):
            raise Invalid(f"the dialler refuses the link: {hello.reason}")
        if link.is_encrypted and link.peer_name != hello.name:
            raise Invalid(f"a certificate of {link.peer_name or 'nobody'} is none of {hello.name}")
    except Invalid as error:
        await refuse(link, str(error))
        raise
    return Guest(msgspec.structs.replace(hello, token=proof.mask(hello.token)), link, token)


async def refuse(link: Connection, reason: str, generation: int = 0) -> None:
    """Send a dialler the reason why it is refused."""
    await _write(link, Refusal(reason[:512], generation))


async def _introduce(
    peer: messages.Peer, hello: Hello, link: Connection, identity: "Identity | None"
) -> Welcome:
    challenge = _decode(await _body(link), Challenge)
    if identity is not None:
        challenge = await _secured(peer, link, identity, challenge)
    proof, nonce = Proof(peer.token, challenge.nonce), new_nonce()
    masked = proof.mask(hello.token)
    await _write(link, msgspec.structs.replace(hello, token=masked, nonce=nonce), proof)
    body = await _body(link)
    answer: Welcome | Refusal = _decode(body, Welcome | Refusal)  # type: ignore[arg-type]
    if isinstance(answer, Refusal):
        why = f"{peer.name} refused the link: {answer.reason}"
        if answer.generation > hello.generation:
            raise Behind(peer.name, why, answer.generation)
        raise PeerLost(peer.name, why)
    Proof(peer.token, nonce).check(body, await link.read(MAC_BYTES))
    if answer.name != peer.name:
        raise PeerLost(peer.name, f"{answer.name} answers at {peer.address}, not {peer.name}")
    return answer


async def _secured(
    peer: messages.Peer, link: Connection, identity: "Identity", challenge: Challenge
) -> Challenge:
    """Begin TLS; returns the challenge that comes within it."""
    if not challenge.is_encrypted:
        why = "links of this side are encrypted, and those to the other are not: it is of an older "
        why += "version, has no keys, or another `encryption` in its configuration"
        await _write(link, Refusal(why), Proof(peer.token, challenge.nonce))
        raise Invalid(why)
    await link.secure(identity.dialling, is_acceptor=False)
    if link.peer_name != peer.name:
        there = link.peer_name or "another"
        raise PeerLost(peer.name, f"{there} answers at {peer.address}, not {peer.name}")
    return _decode(await _body(link), Challenge)


async def _write(link: Connection, message: msgspec.Struct, proof: Proof | None = None) -> None:
    body = msgspec.msgpack.encode(message)
    data = _PREFIX.pack(MAGIC, VERSION, len(body)) + body
    await link.write(data + (proof.mac(body) if proof else b""))


async def _body(link: Connection) -> bytes:
    """Read the body of one message, and not a byte more."""
    magic, version, length = _PREFIX.unpack(await link.read(_PREFIX.size))
    if magic != MAGIC:
        raise Invalid("not an SPS2 data plane connection")
    if version != VERSION:
        raise Invalid(f"data plane version {version}, this side has {VERSION}")
    if length > MAX_HELLO_BYTES:
        raise Invalid(f"a handshake of {length} bytes is over {MAX_HELLO_BYTES}")
    return await link.read(length)


def _decode(body: bytes, kind: type[Message]) -> Message:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except MALFORMED as error:
        raise Invalid(f"malformed handshake: {error}") from error


def parse(address: str) -> tuple[str, int]:
    """Split "scheme://host:port" into host and port.

    Raises:
        Invalid: the address is not of that form.
    """
    host, colon, port = address.partition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        raise Invalid(f"{address!r} is not an address like tcp://127.0.0.1:40123")
    return host, int(port)


def prepare(link: socket) -> None:
    """Set up a socket for a link: non-blocking, without delay, with detection of silence.

    A connection breaks when the other host's kernel has not acknowledged anything for `SILENCE_S`,
    whether data is under way or the link is idle; a busy process does not matter. macOS notices
    later, since it lacks some of the options.
    """
    link.setblocking(False)
    link.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    link.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
    probes = max(1, int(SILENCE_S / 2))  # one a second, after half of the time
    for option, value in (
        ("TCP_KEEPIDLE", probes),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", probes),
        ("TCP_USER_TIMEOUT", int(SILENCE_S * 1000)),
    ):
        if hasattr(socket_options, option):
            link.setsockopt(IPPROTO_TCP, getattr(socket_options, option), value)
