"""The receiving side of credit: tells a sender which of its frames were taken."""

from collections.abc import Callable
from functools import partial

from sps2.common.transport import credit
from sps2.common.transport.credit import Taken
from sps2.common.transport.lifeline import taken

KEPT_BACK = 256
"""Receipts at most: the sender remembers every frame until then."""


class Receipts:
    """Numbers a link's frames as they come, and sends receipts for them, many at once.

    Receipts are kept back while they are for less than `credit.slack()` bytes: no sender waits for
    them.

    Args:
        write: sends bytes to the peer, by the connection that the handshake left open.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._number = 0
        self._taken: list[int] = []
        self._bytes = 0
        self._closed = False

    def next(self, nbytes: int) -> Taken:
        """What is to be called when the next frame was taken; `nbytes` on the wire."""
        self._number += 1
        return partial(self._take, self._number, nbytes)

    def close(self) -> None:
        """Send nothing more."""
        self._closed = True

    def _take(self, number: int, nbytes: int) -> None:
        if self._closed:
            return
        self._taken.append(number)
        self._bytes += nbytes
        if self._bytes >= credit.slack() or len(self._taken) >= KEPT_BACK:
            numbers, self._taken, self._bytes = self._taken, [], 0
            self._write(b"".join(map(taken, numbers)))


class Unread:
    """The sending side: what was sent and has no receipt yet."""

    def __init__(self) -> None:
        self._number = 0
        self._waiting: dict[int, Taken] = {}

    def sent(self, taken: Taken) -> None:
        """A frame has begun to leave."""
        self._number += 1
        self._waiting[self._number] = taken

    def received(self, number: int) -> bool:
        """A receipt came; False if it is for nothing that was sent."""
        taken = self._waiting.pop(number, None)
        if taken is not None:
            taken()
        return taken is not None
