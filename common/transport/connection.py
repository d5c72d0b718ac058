"""One connection of the data plane: a non-blocking socket, with TLS over it once that is agreed."""

import asyncio
import ssl
from collections.abc import Sequence
from socket import MSG_PEEK, socket
from urllib.parse import unquote

RECORD_BYTES = 16 << 10
"""Plaintext of a TLS record, at most."""

SCHEME = "sps2:"
"""Of the URI that is the name in a certificate; the plane's name follows, percent-encoded."""

_TLS_HANDSHAKE = b"\x16"
"""The first byte of a record of TLS's handshake."""


class Tampered(ConnectionError):
    """What came does not decrypt: it was changed, left out, repeated or moved on the way."""


class Connection:
    """A connected non-blocking socket; `secure` encrypts what follows.

    `sendmsg`, `send`, `recv` and `recv_into` are as a socket's: they raise BlockingIOError if
    nothing can be done now, and OSError if the connection is broken; Tampered if somebody on the
    way did it.
    """

    def __init__(self, link: socket) -> None:
        self._socket = link
        self._piece: memoryview | bytes = b""  # what TLS has begun to send, and wants to see again
        self.peer_name = ""
        """The name that the certificate at the other end has; empty before `secure`."""

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is spoken here."""
        return isinstance(self._socket, ssl.SSLSocket)

    @property
    def plain(self) -> socket:
        """The socket, for whoever takes it over before it is encrypted."""
        assert not self.is_encrypted
        return self._socket

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket, without a word."""
        self._socket.close()

    def sendmsg(self, views: Sequence[memoryview]) -> int:
        """Send the beginning of `views`, and return its length.

        After BlockingIOError the next call must be with the same views.
        """
        if not self.is_encrypted:
            return self._socket.sendmsg(views)
        if not self._piece:
            self._piece = _first_record(views)
        sent = self.send(self._piece)
        self._piece = b""
        return sent

    def send(self, data: memoryview | bytes | bytearray) -> int:
        """Send the beginning of `data`; after BlockingIOError the same, which may have grown."""
        try:
            return self._socket.send(data)
        except ssl.SSLError as error:
            raise _translated(error) from error

    def recv(self, nbytes: int) -> bytes:
        """Receive up to `nbytes`; nothing at the end of the connection."""
        try:
            return self._socket.recv(nbytes)
        except ssl.SSLError as error:
            raise _translated(error) from error

    def recv_into(self, buffer: memoryview) -> int:
        """Receive into `buffer`; 0 at the end of the connection."""
        try:
            return self._socket.recv_into(buffer)
        except ssl.SSLError as error:
            raise _translated(error) from error

    def has_more(self) -> bool:
        """Whether there is a decrypted rest that no poll of the descriptor shows."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    async def secure(self, context: ssl.SSLContext, *, is_acceptor: bool) -> None:
        """Perform TLS's handshake.

        Raises:
            ConnectionError: the other side has no certificate of this cluster, or does not take
                this side's, or the connection broke.
        """
        link = context.wrap_socket(
            self._socket, server_side=is_acceptor, do_handshake_on_connect=False
        )
        self._socket = link
        while True:
            try:
                link.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._readable()
            except ssl.SSLWantWriteError:
                await self._writable()
            except ssl.SSLError as error:
                raise _translated(error) from error
        self.peer_name = _name_in(link)

    async def starts_tls(self) -> bool:
        """Whether the other side's next bytes begin a handshake of TLS; they stay unread.

        Raises:
            ConnectionResetError: the connection ended.
        """
        await self._readable()
        if first := self.plain.recv(1, MSG_PEEK):
            return first == _TLS_HANDSHAKE
        raise ConnectionResetError("closed during the handshake")

    async def read(self, nbytes: int) -> bytes:
        """Read exactly `nbytes`, a few. Raises ConnectionResetError if the connection ends."""
        data = b""
        while len(data) < nbytes:
            try:
                more = self.recv(nbytes - len(data))
            except BlockingIOError:
                await self._readable()
                continue
            if not more:
                raise ConnectionResetError("closed during the handshake")
            data += more
        return data

    async def write(self, data: bytes) -> None:
        """Write all of `data`."""
        while data:
            try:
                data = data[self.send(data) :]
            except BlockingIOError:
                await self._writable()

    async def _readable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        descriptor = self.fileno()
        loop.add_reader(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(descriptor)

    async def _writable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        descriptor = self.fileno()
        loop.add_writer(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(descriptor)


def _name_in(link: ssl.SSLSocket) -> str:
    """The plane's name in the certificate at the other end, which is checked already; or ""."""
    names: object = (link.getpeercert() or {}).get("subjectAltName", ())
    match names:
        case (("URI", str(name)),) if name.startswith(SCHEME):
            return unquote(name.removeprefix(SCHEME))
    return ""


def _first_record(views: Sequence[memoryview]) -> memoryview | bytes:
    """The beginning of `views` for one call: a large view as it is, small ones joined."""
    if len(views[0]) >= RECORD_BYTES or len(views) == 1:
        return views[0]
    pieces, room = [], RECORD_BYTES
    for view in views:
        pieces.append(view[:room])
        room -= len(pieces[-1])
        if not room:
            break
    return b"".join(pieces)


def _translated(error: ssl.SSLError) -> OSError:
    """What to raise for an error of TLS."""
    if isinstance(error, ssl.SSLWantReadError | ssl.SSLWantWriteError):
        return BlockingIOError()
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectionError(
            f"its certificate is not of this cluster's key ({error.verify_message})"
        )
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return ConnectionResetError("closed without a goodbye")
    reason = (error.reason or "unknown").lower().replace("_", " ")
    if "unknown ca" in reason or "certificate" in reason:
        return ConnectionError(f"it does not take this side's certificate ({reason})")
    if "alert" in reason:
        return ConnectionError(f"it could not decrypt what came ({reason})")
    return Tampered(f"what came does not decrypt: it was changed on the way ({reason})")
