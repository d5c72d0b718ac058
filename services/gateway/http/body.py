"""Reads the bodies of HTTP requests within limits of size, memory and work."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from starlette.requests import ClientDisconnect, Request

from sps2.common import api
from sps2.common.errors import Cancelled, Invalid, Refused
from sps2.services.gateway.http.problems import TooLarge, Unsupported

T = TypeVar("T")

SMALL = 64 << 10
"""A body of at most this many bytes is not counted: a connection holds as many anyway."""
MOST_VALUES = 1 << 18
"""Least limit of values in one body; a decoded value needs up to 40 times its bytes."""
VALUES_PER_TOKEN = 8


class Body(Generic[T]):
    """A decoded body of `size` bytes, and its share of the memory for bodies."""

    def __init__(self, value: T, size: int, release: Callable[[], None]) -> None:
        self.value = value
        self.size = size
        self.release = release


class Bodies:
    """All bodies in memory, until their prompts are tokenised.

    Args:
        max_bytes: most bytes of one body.
        max_total: most bytes of all bodies together.
        max_context: tokens of prompt and answer; limits the values of a body.
    """

    def __init__(self, max_bytes: int, max_total: int, max_context: int) -> None:
        self._max_bytes = max_bytes
        self._max_values = max(MOST_VALUES, VALUES_PER_TOKEN * max_context)
        self._room = _Room(max_total)

    @asynccontextmanager
    async def read(self, request: Request, kind: type[T]) -> AsyncIterator[Body[T]]:
        """Decode the request's JSON body as a `kind`; it counts as in memory until released.

        Raises:
            TooLarge: it is over the limit; no more bytes than that are kept in memory.
            Unsupported: it is compressed.
            Refused: there is no room for it beside the others.
            Cancelled: the client left before the body was complete.
            Invalid: it is not a `kind`, or has too many values.
        """
        held = _Held(self._room)
        try:
            raw = await self._raw(request, held)
            size = sum(map(len, raw))
            yield Body(await self._decoded(raw, kind), size, held.release)
        finally:
            held.release()

    async def _raw(self, request: Request, held: "_Held") -> list[bytes]:
        too_large = TooLarge(f"the body is over the limit of {self._max_bytes} bytes")
        coding = request.headers.get("content-encoding", "identity")
        if coding.strip().lower() not in ("", "identity"):
            raise Unsupported(f"content-encoding {coding[:40]!r} is not taken: send plain JSON")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > self._max_bytes:
                    raise too_large
                held.grow(size)
                parts.append(part)
        except ClientDisconnect:
            raise Cancelled("the client left before its request was complete") from None
        return parts

    async def _decoded(self, parts: list[bytes], kind: type[T]) -> T:
        raw = b"".join(parts)
        parts.clear()
        commas = raw.count(b",")
        if commas >= self._max_values:
            raise Invalid(
                f"the body has {commas} commas: more token ids than one request may have "
                f"({self._max_values}), or a text that no context holds",
                None,
                "context_length_exceeded",
            )
        if len(raw) <= SMALL:
            return api.parse(raw, kind)
        return await asyncio.to_thread(api.parse, raw, kind)


class _Room:
    """Bytes of all bodies in memory."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0


class _Held:
    """The bytes of one body."""

    def __init__(self, room: _Room) -> None:
        self._room = room
        self._bytes = 0

    def grow(self, size: int) -> None:
        """The body has `size` bytes by now. Raises Refused if that is too much besides others."""
        if size <= SMALL:
            return
        more, others = size - self._bytes, self._room.used - self._bytes
        if others and others + size > self._room.total:
            raise Refused(
                f"large requests fill the {self._room.total} bytes that are for them; "
                "try again later"
            )
        self._bytes += more
        self._room.used += more

    def release(self) -> None:
        """The body is no longer in memory."""
        self._room.used -= self._bytes
        self._bytes = 0
