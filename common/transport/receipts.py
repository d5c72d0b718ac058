"""Receipts, by which a receiver reports consumed frames to their sender."""

from collections.abc import Callable
from functools import partial

from sps2.common.transport import credit
from sps2.common.transport.credit import Consumed
from sps2.common.transport.lifeline import receipt

KEPT_BACK = 256
"""Maximum of receipts that are kept back: the sender remembers every frame until its receipt."""


class Receipts:
    """Numbers a link's incoming frames, and sends receipts for them, many at once.

    Receipts for less than `credit.slack()` bytes are kept back: no sender waits for them.

    Args:
        write: sends bytes to the peer, over the connection that the handshake left open.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._number = 0
        self._consumed: list[int] = []
        self._bytes = 0
        self._closed = False

    def next(self, nbytes: int) -> Consumed:
        """Number the next frame, of `nbytes` on the wire; call the result when it is consumed."""
        self._number += 1
        return partial(self._take, self._number, nbytes)

    def close(self) -> None:
        """Send nothing more."""
        self._closed = True

    def _take(self, number: int, nbytes: int) -> None:
        if self._closed:
            return
        self._consumed.append(number)
        self._bytes += nbytes
        if self._bytes >= credit.slack() or len(self._consumed) >= KEPT_BACK:
            numbers, self._consumed, self._bytes = self._consumed, [], 0
            self._write(b"".join(map(receipt, numbers)))


class Unread:
    """The sending side: frames that have no receipt yet."""

    def __init__(self) -> None:
        self._number = 0
        self._waiting: dict[int, Consumed] = {}

    def sent(self, consumed: Consumed) -> None:
        """Note a frame that begins to leave."""
        self._number += 1
        self._waiting[self._number] = consumed

    def received(self, number: int) -> bool:
        """Handle a receipt; returns False if no such frame was sent."""
        consumed = self._waiting.pop(number, None)
        if consumed is not None:
            consumed()
        return consumed is not None
