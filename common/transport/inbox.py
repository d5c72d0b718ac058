"""The inbox of a request: its frames wait here until they are received."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from torch import Tensor

from sps2.common.errors import Cancelled, PeerLost
from sps2.common.transport.credit import Consumed
from sps2.common.transport.frame import Frame, Purpose

Key = tuple[Purpose, int, int, str]
"""purpose, layer, at, source"""

Tensors = tuple[Tensor, ...]


class _Came(NamedTuple):
    """An unread frame; `consumed` is None once its sender has the credit back."""

    tensors: Tensors
    consumed: Consumed | None


class Inbox:
    """The frames of one (request, epoch); made by `Plane.open`, and open until `close`.

    `credit` explains how much can be unread in it, and why nobody waits for ever.

    Args:
        why_gone: returns why no more frames are to be expected from a peer, or "".
        release: called once, when the inbox closes.
    """

    def __init__(self, why_gone: Callable[[str], str], release: Callable[[], None]) -> None:
        self._why_gone = why_gone
        self._release = release
        self._queued: dict[Key, deque[_Came]] = {}
        self._waiting: dict[Key, deque[asyncio.Future[Tensors]]] = {}
        self.queued_bytes = 0
        """Bytes of unread frames."""
        self._closed = False

    async def recv(self, purpose: Purpose, layer: int, at: int, source: str) -> Tensors:
        """Wait for the next frame with this key and return its tensors; in the order sent.

        Raises:
            PeerLost: `source` was lost or closed before it sent the frame.
            Cancelled: the inbox was closed.
        """
        key = (purpose, layer, at, source)
        if self._closed:
            raise _closed()
        if queue := self._queued.get(key):
            return self._take(key, queue)
        if why := self._why_gone(source):
            raise PeerLost(source, why)
        waiter: asyncio.Future[Tensors] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(waiter)
        self._open_lane(purpose, source)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._offer(key, _Came(waiter.result(), None), first=True)  # back into the queue
            raise
        finally:
            if (waiters := self._waiting.get(key)) and waiter in waiters:
                waiters.remove(waiter)
                if not waiters:
                    del self._waiting[key]

    def put(self, source: str, frame: Frame, tensors: Tensors, consumed: Consumed) -> bool:
        """Accept a frame; returns False if it was dropped. Only the plane calls this.

        Args:
            consumed: called when the frame is read or dropped, or a reader waits for one behind it.
        """
        if self._closed:
            consumed()
            return False
        self._offer((frame.purpose, frame.layer, frame.at, source), _Came(tensors, consumed))
        return True

    def lose(self, source: str, why: str) -> None:
        """Fail readers that wait for `source`; frames it sent stay readable. For the plane only."""
        for (_, _, _, sender), waiters in self._waiting.items():
            if sender == source:
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_exception(PeerLost(source, why))

    def close(self) -> None:
        """Drop queued frames and fail waiting readers; the plane drops later frames."""
        if self._closed:
            return
        self._closed = True
        queued, self._queued, self.queued_bytes = self._queued, {}, 0
        for came in itertools.chain(*queued.values()):
            if came.consumed is not None:
                came.consumed()
        for waiter in itertools.chain(*self._waiting.values()):
            if not waiter.done():
                waiter.set_exception(_closed())
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _offer(self, key: Key, came: _Came, *, first: bool = False) -> None:
        if self._closed:
            return
        for waiter in self._waiting.get(key, ()):
            if not waiter.done():
                waiter.set_result(came.tensors)
                if came.consumed is not None:
                    came.consumed()
                return
        queue = self._queued.setdefault(key, deque())
        queue.insert(0 if first else len(queue), came)
        self.queued_bytes += _nbytes(came.tensors)
        purpose, _, _, source = key
        if self._is_waited_for(purpose, source):
            self._open_lane(purpose, source)

    def _take(self, key: Key, queue: deque[_Came]) -> Tensors:
        tensors, consumed = queue.popleft()
        if not queue:
            del self._queued[key]
        self.queued_bytes -= _nbytes(tensors)
        if consumed is not None:
            consumed()
        return tensors

    def _is_waited_for(self, purpose: Purpose, source: str) -> bool:
        return any(
            (key[0], key[3]) == (purpose, source) and not all(waiter.done() for waiter in waiters)
            for key, waiters in self._waiting.items()
        )

    def _open_lane(self, purpose: Purpose, source: str) -> None:
        """Return the credit of all unread frames of a lane: the awaited one may be behind them."""
        for key, queue in self._queued.items():
            if (key[0], key[3]) == (purpose, source):
                for index, (tensors, consumed) in enumerate(queue):
                    if consumed is not None:
                        queue[index] = _Came(tensors, None)
                        consumed()


def _closed() -> Cancelled:
    return Cancelled("the inbox was closed")


def _nbytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)
