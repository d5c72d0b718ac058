"""A small HTTP/1.1 client for streams, on asyncio alone.

The load generator must work with the base install, and must cost little per chunk: it often runs on
the machine that it measures. Connections are kept for the next request.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sps2.common.errors import Invalid

LINE_BYTES = 1 << 16
DEFAULT_PORTS = {"http": 80, "https": 443}


class BadAnswer(Exception):
    """What came is no HTTP answer, or not a whole one."""


@dataclass
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    is_used: bool = False


@dataclass
class Answer:
    """An answer whose body is still to come."""

    status: int
    reason: str
    headers: Mapping[str, str]
    length: int | None
    """Bytes of the body, if it says."""
    _reader: asyncio.StreamReader = field(repr=False)
    is_whole: bool = False
    """Whether its end was read, so that the connection can be used again."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in the pieces in which it comes."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            while size := await self._size():
                yield await self._reader.readexactly(size)
                await self._reader.readexactly(2)
            while (await self._reader.readline()).strip():
                pass
            self.is_whole = True
        elif self.length is not None:
            left = self.length
            while left > 0:
                piece = await self._reader.read(min(left, LINE_BYTES))
                if not piece:
                    raise BadAnswer(f"the connection ended {left} bytes too early")
                left -= len(piece)
                yield piece
            self.is_whole = True
        else:
            while piece := await self._reader.read(LINE_BYTES):
                yield piece

    async def body(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def _size(self) -> int:
        try:
            return int((await self._reader.readline()).split(b";")[0], 16)
        except ValueError:
            raise BadAnswer("the connection ended within the answer") from None


class Http:
    """Asks one server. Proxies of the environment are not used.

    Args:
        url: where it is, such as http://127.0.0.1:8000; a path in it comes before all paths.
        headers: sent with every request.
        is_insecure: whether its certificate is not checked.
    """

    def __init__(self, url: str, headers: Mapping[str, str], is_insecure: bool = False) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port or DEFAULT_PORTS[parts.scheme]
        except (KeyError, ValueError):
            raise Invalid(f"{url!r} is no address such as http://127.0.0.1:8000") from None
        if not parts.hostname:
            raise Invalid(f"{url!r} names no host")
        self.url = url.rstrip("/")
        self._address = (parts.hostname, port)
        self._prefix = parts.path.rstrip("/")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        if self._tls is not None and is_insecure:
            self._tls.check_hostname = False
            self._tls.verify_mode = ssl.CERT_NONE
        host = parts.netloc.rpartition("@")[2]
        lines = [f"host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
        if any("\r" in line or "\n" in line for line in lines):
            raise Invalid("a header has a line break")
        self._headers = "\r\n".join(lines).encode("latin-1", "replace")
        self._idle: list[_Connection] = []

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises OSError or BadAnswer."""
        async with self._request("GET", path, b"") as answer:
            return answer.status, await answer.body()

    @asynccontextmanager
    async def post(self, path: str, body: bytes) -> AsyncIterator[Answer]:
        """The answer to a body of JSON. Leaving early closes the connection.

        Raises:
            OSError, EOFError, BadAnswer: no answer came, or only a part.
        """
        async with self._request("POST", path, body) as answer:
            yield answer

    async def close(self) -> None:
        for connection in self._idle:
            connection.writer.transport.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # they are closed when the loop runs next

    @asynccontextmanager
    async def _request(self, method: str, path: str, body: bytes) -> AsyncIterator[Answer]:
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n".encode() + self._headers
        if method == "POST":
            head += b"\r\ncontent-type: application/json\r\ncontent-length: %d" % len(body)
        message = head + b"\r\n\r\n" + body
        while True:
            connection = await self._connect()
            try:
                connection.writer.write(message)
                answer = await _head(connection.reader)
                break
            except (ConnectionError, EOFError):
                connection.writer.transport.abort()
                if not connection.is_used:
                    raise
                # the server closed an idle connection: ask once more
            except BaseException:
                connection.writer.transport.abort()
                raise
        try:
            yield answer
        finally:
            keeps = answer.headers.get("connection", "").lower() != "close"
            if answer.is_whole and keeps:
                connection.is_used = True
                self._idle.append(connection)
            else:
                connection.writer.transport.abort()

    async def _connect(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof() and not connection.writer.is_closing():
                return connection
            connection.writer.transport.abort()
        return _Connection(
            *await asyncio.open_connection(*self._address, ssl=self._tls, limit=LINE_BYTES)
        )


async def _head(reader: asyncio.StreamReader) -> Answer:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, *reason = first.split(" ", 2)
        if not version.startswith("HTTP/1."):
            raise ValueError(version)
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        length = int(headers["content-length"]) if "content-length" in headers else None
        answer = Answer(int(status), " ".join(reason), headers, length, reader)
    except (ValueError, asyncio.LimitOverrunError) as error:
        raise BadAnswer(f"no HTTP answer: {error}") from error
    if 100 <= answer.status < 200:
        return await _head(reader)
    return answer


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of server-sent events; comments and other fields are skipped."""
    rest = b""
    data: list[bytes] = []
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data.clear()
    if rest.startswith(b"data:"):
        data.append(rest[5:].strip())
    if data:
        yield b"\n".join(data)
