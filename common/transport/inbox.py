"""Where the frames of one request wait until somebody asks for them."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from torch import Tensor

from sps2.common.errors import Cancelled, PeerLost
from sps2.common.transport.credit import Taken
from sps2.common.transport.frame import Frame, Purpose

Key = tuple[Purpose, int, int, str]
"""purpose, layer, at, source"""

Tensors = tuple[Tensor, ...]


class _Came(NamedTuple):
    """A frame that nobody has read; `taken` is None once its sender has the credit back."""

    tensors: Tensors
    taken: Taken | None


class Inbox:
    """Frames of one (request, epoch); made by `Plane.open`, and open until `close`.

    How much can lie in it unread, and why nobody waits for ever, says `credit`.

    Args:
        why_gone: says why nothing more is to be awaited of a peer, or "".
        release: called once, when the inbox closes.
    """

    def __init__(self, why_gone: Callable[[str], str], release: Callable[[], None]) -> None:
        self._why_gone = why_gone
        self._release = release
        self._queued: dict[Key, deque[_Came]] = {}
        self._waiting: dict[Key, deque[asyncio.Future[Tensors]]] = {}
        self.queued_bytes = 0
        """Of frames that nobody has read."""
        self._closed = False

    async def recv(self, purpose: Purpose, layer: int, at: int, source: str) -> Tensors:
        """The tensors of the next such frame; frames with the same key come in order.

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
                self._offer(key, _Came(waiter.result(), None), first=True)  # it will not be used
            raise
        finally:
            if (waiters := self._waiting.get(key)) and waiter in waiters:
                waiters.remove(waiter)
                if not waiters:
                    del self._waiting[key]

    def put(self, source: str, frame: Frame, tensors: Tensors, taken: Taken) -> bool:
        """Take a frame in; False if it was dropped. Only the plane calls this.

        Args:
            taken: called when it is read or dropped, or somebody waits for one behind it.
        """
        if self._closed:
            taken()
            return False
        self._offer((frame.purpose, frame.layer, frame.at, source), _Came(tensors, taken))
        return True

    def lose(self, source: str, why: str) -> None:
        """Fail those who wait for `source`; what it sent stays readable. Only the plane calls."""
        for (_, _, _, sender), waiters in self._waiting.items():
            if sender == source:
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_exception(PeerLost(source, why))

    def close(self) -> None:
        """Drop what is queued, fail who waits; later frames are dropped by the plane."""
        if self._closed:
            return
        self._closed = True
        queued, self._queued, self.queued_bytes = self._queued, {}, 0
        for came in itertools.chain(*queued.values()):
            if came.taken is not None:
                came.taken()
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
                if came.taken is not None:
                    came.taken()
                return
        queue = self._queued.setdefault(key, deque())
        queue.insert(0 if first else len(queue), came)
        self.queued_bytes += _nbytes(came.tensors)
        purpose, _, _, source = key
        if self._is_waited_for(purpose, source):
            self._open_lane(purpose, source)

    def _take(self, key: Key, queue: deque[_Came]) -> Tensors:
        tensors, taken = queue.popleft()
        if not queue:
            del self._queued[key]
        self.queued_bytes -= _nbytes(tensors)
        if taken is not None:
            taken()
        return tensors

    def _is_waited_for(self, purpose: Purpose, source: str) -> bool:
        return any(
            (key[0], key[3]) == (purpose, source) and not all(waiter.done() for waiter in waiters)
            for key, waiters in self._waiting.items()
        )

    def _open_lane(self, purpose: Purpose, source: str) -> None:
        """Give the credit back for all of a lane: what is awaited may be behind it."""
        for key, queue in self._queued.items():
            if (key[0], key[3]) == (purpose, source):
                for index, (tensors, taken) in enumerate(queue):
                    if taken is not None:
                        queue[index] = _Came(tensors, None)
                        taken()


def _closed() -> Cancelled:
    return Cancelled("the inbox was closed")


def _nbytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)
