"""Where the frames of one request wait until somebody asks for them."""

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from torch import Tensor

from sps2.common.errors import Cancelled, Internal, PeerLost
from sps2.common.transport.frame import Frame, Purpose

MAX_QUEUED_BYTES = 2 << 30

Key = tuple[Purpose, int, int, str]
"""purpose, layer, at, source"""

Tensors = tuple[Tensor, ...]


class Inbox:
    """Frames of one (request, epoch); made by `Plane.open`, and open until `close`.

    Args:
        why_gone: says why nothing more is to be awaited of a peer, or "".
        release: called once, when the inbox closes.
    """

    def __init__(self, why_gone: Callable[[str], str], release: Callable[[], None]) -> None:
        self._why_gone = why_gone
        self._release = release
        self._queued: dict[Key, deque[Tensors]] = {}
        self._waiting: dict[Key, deque[asyncio.Future[Tensors]]] = {}
        self._queued_bytes = 0
        self._broken: Exception | None = None

    async def recv(self, purpose: Purpose, layer: int, at: int, source: str) -> Tensors:
        """The tensors of the next such frame; frames with the same key come in order.

        Raises:
            PeerLost: `source` was lost or closed before it sent the frame.
            Cancelled: the inbox was closed.
            Internal: more than `MAX_QUEUED_BYTES` came that nobody asked for.
        """
        key = (purpose, layer, at, source)
        if self._broken is not None:
            raise self._broken
        if queue := self._queued.get(key):
            return self._take(key, queue)
        if why := self._why_gone(source):
            raise PeerLost(source, why)
        waiter: asyncio.Future[Tensors] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._offer(key, waiter.result(), first=True)  # it came, but will not be used
            raise
        finally:
            if (waiters := self._waiting.get(key)) and waiter in waiters:
                waiters.remove(waiter)
                if not waiters:
                    del self._waiting[key]

    def put(self, source: str, frame: Frame, tensors: Tensors) -> bool:
        """Take a frame in; False if it was not kept. Only the plane calls this."""
        if self._queued_bytes + frame.nbytes > MAX_QUEUED_BYTES:
            self._break(Internal(f"an inbox holds {self._queued_bytes} bytes that nobody reads"))
        if self._broken is not None:
            return False
        self._offer((frame.purpose, frame.layer, frame.at, source), tensors)
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
        if not isinstance(self._broken, Cancelled):
            self._break(Cancelled("the inbox was closed"))
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

    def _break(self, error: Exception) -> None:
        self._broken = error
        self._queued.clear()
        self._queued_bytes = 0
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)

    def _offer(self, key: Key, tensors: Tensors, *, first: bool = False) -> None:
        if self._broken is not None:
            return
        for waiter in self._waiting.get(key, ()):
            if not waiter.done():
                waiter.set_result(tensors)
                return
        queue = self._queued.setdefault(key, deque())
        queue.insert(0 if first else len(queue), tensors)
        self._queued_bytes += sum(tensor.nbytes for tensor in tensors)

    def _take(self, key: Key, queue: deque[Tensors]) -> Tensors:
        tensors = queue.popleft()
        if not queue:
            del self._queued[key]
        self._queued_bytes -= sum(tensor.nbytes for tensor in tensors)
        return tensors
