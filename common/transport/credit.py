"""How far a sender may get ahead of whoever reads: credit, for each lane to a peer.

A lane is all frames of one purpose and one request (with its epoch) to one peer. They arrive in
the order in which they were sent; lanes share nothing. The receiver says of every frame that it was
taken, once it has been given to its reader or handler, or was dropped. A frame leaves when nothing
of its lane is unread, or when all that is unread makes at most `CREDIT_BYTES` together with it.

Nothing waits for ever, whatever the order of reading:

1. A reader that waits opens its lane: all of the lane that lies unread counts as taken, and so does
   all that comes while it waits. So every frame before the awaited one leaves, and then that one.
2. A handler takes a frame as it comes. A request that has ended, or was never open, drops its
   frames as they come. A slow or forgotten request holds up its own lanes only.
3. A lost peer ends the waiting with PeerLost, and links of a new generation begin with full credit.

So much memory is bounded: of a lane that nobody waits in, `CREDIT_BYTES` or one frame, whichever is
more, lies at the receiver or is on its way to it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sps2.common.errors import PeerLost
from sps2.common.transport.frame import Frame, Purpose

CREDIT_BYTES = 64 << 20

Lane = tuple[Purpose, str, int]
"""Purpose, request, epoch; frames for several requests at once share one without a request."""
Taken = Callable[[], None]
"""Told, once, that a frame was read or dropped, or will never leave."""


def lane_of(frame: Frame) -> Lane:
    """The lane that a frame travels in."""
    if len(frame.requests) == 1:
        return frame.purpose, frame.requests[0], frame.epochs[0]
    return frame.purpose, "", 0


class _State:
    """Of one lane that is in use."""

    __slots__ = ("order", "unread_bytes", "users", "waiter")

    def __init__(self) -> None:
        self.order = asyncio.Lock()
        self.unread_bytes = 0
        self.users = 0
        self.waiter: asyncio.Future[None] | None = None


class Credit:
    """A sender's account with one peer, for links of one generation."""

    def __init__(self) -> None:
        self.unread_bytes = 0
        """Sent, or about to be, and not yet taken: of all lanes."""
        self._lanes: dict[Lane, _State] = {}
        self._lost: PeerLost | None = None

    @asynccontextmanager
    async def turn(self, lane: Lane, nbytes: int) -> AsyncIterator[Taken]:
        """Wait for the lane's turn and credit; the lane's next frame waits for the block's end.

        The block is given what is to be called when the frame was taken. If the block fails, the
        credit comes back by itself.

        Raises:
            PeerLost: the peer was lost meanwhile.
        """
        state = self._lanes.setdefault(lane, _State())
        state.users += 1
        try:
            async with state.order:
                await self._room(state, nbytes)
                self._add(state, nbytes)
                try:
                    yield lambda: self._taken(lane, state, nbytes)
                except BaseException:
                    self._add(state, -nbytes)
                    raise
        finally:
            state.users -= 1
            self._tidy(lane, state)

    def end(self, lost: PeerLost) -> None:
        """Fail who waits: the peer was lost."""
        self._lost = lost
        for state in self._lanes.values():
            if state.waiter is not None and not state.waiter.done():
                state.waiter.set_exception(PeerLost(lost.peer, lost.message))

    async def _room(self, state: _State, nbytes: int) -> None:
        while self._lost is None and state.unread_bytes:
            if state.unread_bytes + nbytes <= CREDIT_BYTES:
                return
            state.waiter = asyncio.get_running_loop().create_future()
            await state.waiter
        if self._lost is not None:
            raise PeerLost(self._lost.peer, self._lost.message)

    def _taken(self, lane: Lane, state: _State, nbytes: int) -> None:
        self._add(state, -nbytes)
        if state.waiter is not None and not state.waiter.done():
            state.waiter.set_result(None)
        self._tidy(lane, state)

    def _add(self, state: _State, nbytes: int) -> None:
        state.unread_bytes += nbytes
        self.unread_bytes += nbytes

    def _tidy(self, lane: Lane, state: _State) -> None:
        if not state.users and not state.unread_bytes and self._lanes.get(lane) is state:
            del self._lanes[lane]
