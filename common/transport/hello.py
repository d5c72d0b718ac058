"""The handshake that opens a link between processes: who dials, and who answers."""

import asyncio
import struct
from socket import IPPROTO_TCP, SO_KEEPALIVE, SOL_SOCKET, TCP_NODELAY, socket
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from sps2.common.errors import Invalid, PeerLost

MAGIC = b"SPS2"
VERSION = 1
MAX_HELLO_BYTES = 4096
DIAL_S = 10.0
ATTEMPTS = 3

_PREFIX = struct.Struct("<4sHH")  # magic, version, length of what follows

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """First message of a dialler; `worker` is its UCX worker address."""

    name: Name
    address: Annotated[str, Meta(max_length=256)]
    backend: Literal["ucx", "tcp"]
    worker: Annotated[bytes, Meta(max_length=2048)] = b""


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The answer; `slot` is the dialler's part of the acceptor's UCX tags."""

    name: Name
    worker: Annotated[bytes, Meta(max_length=2048)] = b""
    slot: Annotated[int, Meta(ge=0, lt=1 << 24)] = 0


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The other answer."""

    reason: Annotated[str, Meta(max_length=512)]


Message = TypeVar("Message", bound=msgspec.Struct)


async def write(link: socket, message: msgspec.Struct) -> None:
    """Send one handshake message over a non-blocking socket."""
    body = msgspec.msgpack.encode(message)
    data = _PREFIX.pack(MAGIC, VERSION, len(body)) + body
    await asyncio.get_running_loop().sock_sendall(link, data)


async def read(link: socket, kind: type[Message]) -> Message:
    """Receive one handshake message, and not a byte more.

    Raises:
        Invalid: garbage, another version, or too long.
        ConnectionError: the other side closed.
    """
    magic, version, length = _PREFIX.unpack(await _exactly(link, _PREFIX.size))
    if magic != MAGIC:
        raise Invalid("not an SPS2 data plane connection")
    if version != VERSION:
        raise Invalid(f"data plane version {version}, this side has {VERSION}")
    if length > MAX_HELLO_BYTES:
        raise Invalid(f"a handshake of {length} bytes is over {MAX_HELLO_BYTES}")
    try:
        return msgspec.msgpack.decode(await _exactly(link, length), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Invalid(f"malformed handshake: {error}") from error


async def _exactly(link: socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        more = await asyncio.get_running_loop().sock_recv(link, nbytes - len(data))
        if not more:
            raise ConnectionResetError("closed during the handshake")
        data += more
    return data


async def dial(peer: str, address: str, hello: Hello) -> tuple[socket, Welcome]:
    """Connect to `address` ("tcp://host:port") and shake hands with `peer`.

    Raises:
        PeerLost: nobody is there, or it is another process now, or it refuses.
    """
    host, port = parse(address)
    for attempt in range(ATTEMPTS):
        link = socket()
        try:
            async with asyncio.timeout(DIAL_S):
                prepare(link)
                await asyncio.get_running_loop().sock_connect(link, (host, port))
                await write(link, hello)
                answer = await read(link, Welcome | Refusal)  # type: ignore[arg-type]
            if isinstance(answer, Refusal):
                raise PeerLost(peer, f"{peer} refused the link: {answer.reason}")
            if answer.name != peer:
                raise PeerLost(peer, f"{peer} is gone: {answer.name} answers at {address}")
            return link, answer
        except BaseException as error:
            link.close()
            if isinstance(error, ConnectionResetError) and attempt + 1 < ATTEMPTS:
                continue  # a crowded listener drops its oldest handshake
            if isinstance(error, OSError | Invalid):
                why = str(error) or f"no answer in {DIAL_S:g} s"
                raise PeerLost(peer, f"cannot reach {peer} at {address}: {why}") from error
            raise
    raise AssertionError("the last attempt returns or raises")


def parse(address: str) -> tuple[str, int]:
    """Host and port of "scheme://host:port".

    Raises:
        Invalid: it is not of that form.
    """
    host, colon, port = address.partition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        raise Invalid(f"{address!r} is not an address like tcp://127.0.0.1:40123")
    return host, int(port)


def prepare(link: socket) -> None:
    """Set a socket up for a link: non-blocking, small frames at once, dead hosts noticed."""
    link.setblocking(False)
    link.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    link.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
