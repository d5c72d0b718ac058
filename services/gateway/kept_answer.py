"""An answer that several clients can read, each from its beginning."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

import msgspec

from sps2.common.errors import Cancelled

T = TypeVar("T", bound=msgspec.Struct)

LEFT_S = 60.0
"""How long an answer goes on that nobody reads any more."""
UNREAD = 1 << 14
"""Parts that a reader of an answer may be behind for which there is no room."""


class Answer:
    """One answer, which its readers get from its beginning, however late they come.

    Args:
        grew: called with the bytes that are kept more, or less if negative.
        ended: called when it has ended.

    Attributes:
        error: what it ended with.
        is_over: whether it has ended.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[T, None],
        grew: Callable[[int], None],
        ended: Callable[[], None],
    ) -> None:
        self.error: Exception | None = None
        self.is_over = False
        self._grew = grew
        self._ended = ended
        self._is_kept = True
        self._parts: list[bytes] = []
        self._first = 0
        self._places: dict[object, int] = {}
        self._news = asyncio.Event()
        self._leaving: asyncio.TimerHandle | None = None
        self._task = asyncio.create_task(self._run(chunks))

    @property
    def is_read(self) -> bool:
        """Whether somebody reads it."""
        return bool(self._places)

    def read(self) -> AsyncGenerator[bytes, None]:
        """All of its chunks, to be iterated. Raises the error that it ended with."""
        reader = object()
        self._places[reader] = self._first
        if self._leaving is not None:
            self._leaving.cancel()
        return self._chunks(reader)

    def give_up(self) -> None:
        """Keep no more than what its readers still have to read; nobody else may come."""
        self._is_kept = False
        self._forget_read()
        if not self._places and not self.is_over:
            self._task.cancel()

    async def close(self) -> None:
        """End it."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _chunks(self, reader: object) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                while (place := self._places[reader] - self._first) < len(self._parts):
                    part = self._parts[place]
                    self._places[reader] += 1
                    self._forget_read()
                    yield part
                if self.is_over:
                    break
                await self._news.wait()
            if self.error is not None:
                raise self.error
        finally:
            del self._places[reader]
            self._forget_read()
            if not self._places and not self.is_over:
                wait_s = LEFT_S if self._is_kept else 0.0
                self._leaving = asyncio.get_running_loop().call_later(wait_s, self._task.cancel)

    async def _run(self, chunks: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    self._add(msgspec.json.encode(chunk))
        except asyncio.CancelledError:
            self.error = Cancelled("nobody read this answer any more")
            raise
        except Exception as error:
            self.error = error
        finally:
            self.is_over = True
            self._tell()
            self._ended()

    def _add(self, part: bytes) -> None:
        if not self._is_kept and len(self._parts) >= UNREAD:
            raise Cancelled(f"{UNREAD} parts wait for a client that does not read them")
        self._parts.append(part)
        self._tell()
        self._grew(len(part))

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _forget_read(self) -> None:
        if self._is_kept:
            return
        end = self._first + len(self._parts)
        read = min(self._places.values(), default=end) - self._first
        gone = sum(map(len, self._parts[:read]))
        del self._parts[:read]
        self._first += read
        self._grew(-gone)
