"""Flow control of the data plane: credit limits how far a sender may get ahead of readers, by lane.

A lane is all frames of one purpose and one request (with its epoch) to one peer. They arrive in
the order in which they were sent; lanes are independent. A frame is consumed once its reader or
handler has it, or it was dropped. The receiver reports consumed frames by receipts, many at once,
and keeps back receipts for less than `slack()` bytes. So the sender may count consumed frames as
unread, but never more than the slack. A frame leaves when the unread bytes of its lane are at most
the slack, or at most `CREDIT_BYTES` together with it.

Nothing waits for ever, whatever the order of reading:

1. A waiting reader opens its lane: all unread frames of the lane count as consumed, and so do those
   that come while it waits. The sender then counts only frames as unread whose receipts are kept
   back, which the slack covers. So every frame before the awaited one leaves, and then that one.
2. A handler consumes a frame when it comes. Frames of a request that has ended, or was never open,
   are dropped when they come. A slow or forgotten request holds up its own lanes only.
3. A lost peer ends the waiting with PeerLost, and links of a new generation begin with full credit.

Memory is bounded: a lane without a waiting reader has at most `CREDIT_BYTES`, or the slack and one
frame, whichever is more, at the receiver or on its way to it.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sps2.common.errors import PeerLost
from sps2.common.transport.frame import Frame, Purpose

CREDIT_BYTES = 64 << 20
_SLACK_PART = 16

Lane = tuple[Purpose, str, int]
"""Purpose, request, epoch; frames for several requests at once share a lane without a request."""
Consumed = Callable[[], None]
"""Called once, when a frame was read or dropped, or will never leave."""


def slack() -> int:
    """Bytes of consumed frames whose receipts a receiver may keep back; both sides know it."""
    return CREDIT_BYTES // _SLACK_PART


def lane_of(frame: Frame) -> Lane:
    """The lane of a frame."""
    if len(frame.requests) == 1:
        return frame.purpose, frame.requests[0], frame.epochs[0]
    return frame.purpose, "", 0


class _State:
    """The state of one lane that is in use."""

    __slots__ = ("lane", "order", "unread_bytes", "users", "waiter")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.order = asyncio.Lock()
        self.unread_bytes = 0
        self.users = 0
        self.waiter: asyncio.Future[None] | None = None


class Credit:
    """A sender's account with one peer, for links of one generation."""

    def __init__(self) -> None:
        self.unread_bytes = 0
        """Bytes of all lanes that were sent, or are about to be, and have no receipt."""
        self._lanes: dict[Lane, _State] = {}
        self._lost: PeerLost | None = None

    async def turn(self, lane: Lane, nbytes: int) -> "Turn":
        """Wait for the lane's turn and credit; does not suspend if both are available.

        Raises:
            PeerLost: the peer was lost meanwhile.
        """
        state = self._lanes.get(lane)
        if state is None:
            state = self._lanes[lane] = _State(lane)
        state.users += 1
        try:
            await state.order.acquire()
            try:
                await self._room(state, nbytes)
            except BaseException:
                state.order.release()
                raise
        except BaseException:
            self._leave(state)
            raise
        self._add(state, nbytes)
        return Turn(self, state, nbytes)

    def end(self, lost: PeerLost) -> None:
        """The peer was lost: fail all who wait."""
        self._lost = lost
        for state in self._lanes.values():
            if state.waiter is not None and not state.waiter.done():
                state.waiter.set_exception(PeerLost(lost.peer, lost.message))

    async def _room(self, state: _State, nbytes: int) -> None:
        while self._lost is None:
            unread = state.unread_bytes
            if unread + nbytes <= CREDIT_BYTES or unread <= slack():
                return
            state.waiter = asyncio.get_running_loop().create_future()
            await state.waiter
        raise PeerLost(self._lost.peer, self._lost.message)

    def _consumed(self, state: _State, nbytes: int) -> None:
        self._add(state, -nbytes)
        if state.waiter is not None and not state.waiter.done():
            state.waiter.set_result(None)
        self._tidy(state)

    def _leave(self, state: _State) -> None:
        state.users -= 1
        self._tidy(state)

    def _add(self, state: _State, nbytes: int) -> None:
        state.unread_bytes += nbytes
        self.unread_bytes += nbytes

    def _tidy(self, state: _State) -> None:
        if not state.users and not state.unread_bytes and self._lanes.get(state.lane) is state:
            del self._lanes[state.lane]


class Turn:
    """A frame that has its credit; the lane's next frame waits for the end of the `with` block.

    If the block fails, the credit is returned.
    """

    __slots__ = ("_credit", "_nbytes", "_state")

    def __init__(self, credit: Credit, state: _State, nbytes: int) -> None:
        self._credit = credit
        self._state = state
        self._nbytes = nbytes

    def consumed(self) -> None:
        """Return the credit: the frame was read or dropped, or will never leave."""
        self._credit._consumed(self._state, self._nbytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.consumed()
        self._state.order.release()
        self._credit._leave(self._state)
