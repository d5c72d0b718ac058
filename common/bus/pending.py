"""The caller's side of a pending call: the one reply of a call, or the items of a stream."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, Protocol, TypeVar

from sps2.common.bus import wire
from sps2.common.bus.wire import Kind
from sps2.common.errors import Internal, Invalid, ServiceError

Item = TypeVar("Item")


class Pending(Protocol):
    """A call that waits for frames from its server."""

    window: int

    def deliver(self, kind: Kind, body: bytes) -> bool:
        """Handle a frame; returns true if it was the last."""
        ...

    def fail(self, error: ServiceError) -> None: ...


class Answer:
    """The one reply of a call."""

    window = 0

    def __init__(self) -> None:
        # an error is kept as a result: an exception that nobody retrieves would be logged
        self._future: asyncio.Future[bytes | ServiceError] = (
            asyncio.get_running_loop().create_future()
        )

    def deliver(self, kind: Kind, body: bytes) -> bool:
        if not self._future.done():
            self._future.set_result(body if kind is Kind.REPLY else _error_of(kind, body))
        return True

    def fail(self, error: ServiceError) -> None:
        if not self._future.done():
            self._future.set_result(error)

    async def body(self) -> bytes:
        result = await self._future
        if isinstance(result, ServiceError):
            raise result
        return result


class Items(Generic[Item]):
    """The items of a stream, in order; receiving them grants the server credit for more."""

    def __init__(self, kind: type[Item], window: int) -> None:
        self.window = window
        self._kind = kind
        self._queue: asyncio.Queue[bytes | ServiceError | None] = asyncio.Queue(window + 1)
        self._received = 0
        self._over = False
        self._end: ServiceError | None = None
        self.grant: Callable[[int], None] = lambda items: None

    def deliver(self, kind: Kind, body: bytes) -> bool:
        if kind is Kind.ITEM and self._queue.qsize() < self.window:
            self._queue.put_nowait(body)
            return False
        if kind is Kind.ITEM:
            self.fail(Internal("the server sent more items than it may"))
        else:
            self._queue.put_nowait(None if kind is Kind.END else _error_of(kind, body))
        return True

    def fail(self, error: ServiceError) -> None:
        self._queue.put_nowait(error)

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        if self._over:
            raise self._end or StopAsyncIteration
        match await self._queue.get():
            case bytes(body):
                self._received += 1
                if 2 * self._received >= self.window:
                    self.grant(self._received)
                    self._received = 0
                return unpack_answer(body, self._kind)
            case end:
                self._over, self._end = True, end
                raise end or StopAsyncIteration


def unpack_answer(body: bytes, kind: type[Item]) -> Item:
    """Decode a reply or an item; a malformed one is the server's fault.

    Raises:
        Internal: it is not a `kind`.
    """
    try:
        return wire.unpack(body, kind)
    except Invalid as error:
        raise Internal(f"malformed answer: {error}") from error


def _error_of(kind: Kind, body: bytes) -> ServiceError:
    if kind is Kind.ERROR:
        return wire.unpack_error(body)
    return Internal(f"unexpected {kind.name} from the server")
