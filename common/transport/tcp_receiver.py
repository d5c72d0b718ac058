"""The receiving end of a TCP link: payloads are read directly into their tensors."""

import asyncio
from typing import cast

from torch import Tensor

from sps2.common.errors import Invalid
from sps2.common.transport import frame as frames
from sps2.common.transport import lifeline
from sps2.common.transport.connection import Tampered
from sps2.common.transport.frame import Frame
from sps2.common.transport.interfaces import Sink
from sps2.common.transport.receipts import Receipts
from sps2.common.transport.tcp_link import FRAME, GOODBYE, PREFIX

SCRATCH_BYTES = 64 << 10
DROP_BYTES = 1 << 20


class TcpReceiver(asyncio.BufferedProtocol):
    """Reads one peer's frames.

    Headers and small frames go through a scratch buffer, many per read. The rest of a large payload
    is read into its tensors, or into a reused buffer if it is to be dropped.
    """

    def __init__(self, peer: str, sink: Sink) -> None:
        self._peer = peer
        self._sink = sink
        self._transport: asyncio.Transport | None = None
        self._closed = False
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._start = self._stop = 0  # the unread part of the scratch buffer
        self._direct = False  # whether the last buffer returned was not the scratch buffer
        self._frame: Frame | None = None
        self._tensors: tuple[Tensor, ...] | None = None
        self._targets: list[memoryview] = []  # where the rest of the payload goes, in reverse
        self._dropping = 0  # bytes of payload still to come that are dropped
        self._trash: memoryview | None = None
        self._nbytes = 0
        self._receipts = Receipts(self._say)

    def goodbye(self) -> None:
        """Announce to the peer that nothing more will be read."""
        self._say(lifeline.GOODBYE)

    def close(self) -> None:
        """End the link at once."""
        self._closed = True
        self._receipts.close()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._closed:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if isinstance(exc, Tampered):
            self._sink.counters["bad_frames"] += 1
        if not self._closed:
            self._sink.gone(self._peer, f"the connection broke: {exc or 'no goodbye'}")

    def get_buffer(self, sizehint: int) -> memoryview:
        self._direct = True
        if self._targets:
            return self._targets[-1]
        if self._dropping:
            if self._trash is None:
                self._trash = memoryview(bytearray(DROP_BYTES))
            return self._trash[: self._dropping]
        self._direct = False
        if self._start:
            unread = self._stop - self._start
            self._scratch[:unread] = self._scratch[self._start : self._stop]
            self._start, self._stop = 0, unread
        return self._scratch[self._stop :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._direct:
            self._took(nbytes)
            return
        self._stop += nbytes
        try:
            while not self._closed and self._parse():
                pass
        except Invalid as error:
            self._sink.counters["bad_frames"] += 1
            self._sink.gone(self._peer, f"it sent garbage: {error}")

    def _parse(self) -> bool:
        """Parse one more piece of the scratch buffer; returns False if it is not complete."""
        unread = self._scratch[self._start : self._stop]
        if self._frame is None:
            return self._begin(unread)
        if self._targets or self._dropping:
            room = len(self._targets[-1]) if self._targets else self._dropping
            piece = unread[:room]
            if self._targets:
                self._targets[-1][: len(piece)] = piece
            self._took(len(piece))
            self._start += len(piece)
            return len(piece) == room
        if not unread:
            return False
        self._start += 1
        self._finish(cancelled=bool(unread[0]))
        return True

    def _begin(self, unread: memoryview) -> bool:
        if len(unread) < PREFIX.size:
            return False
        kind, length = PREFIX.unpack_from(unread)
        if kind == GOODBYE:
            self._sink.gone(self._peer, "it closed", goodbye=True)
            return False
        if kind != FRAME or length > frames.MAX_HEADER_BYTES:
            raise Invalid("a frame begins with something else")
        size = PREFIX.size + length
        if len(unread) < size:
            return False
        self._frame = frames.decode(unread[PREFIX.size : size])
        self._start += size
        self._nbytes = size + self._frame.nbytes + 1
        self._sink.meter.begin(self._peer, self._nbytes)
        if self._sink.wants(self._frame):
            self._tensors = frames.allocate(self._frame)
            self._targets = [view for t in reversed(self._tensors) if (view := frames.as_bytes(t))]
        else:
            self._tensors = None
            self._dropping = self._frame.nbytes
        return True

    def _took(self, nbytes: int) -> None:
        if not self._targets:
            self._dropping -= nbytes
        elif nbytes < len(self._targets[-1]):
            self._targets[-1] = self._targets[-1][nbytes:]
        else:
            self._targets.pop()

    def _finish(self, *, cancelled: bool) -> None:
        assert self._frame is not None
        frame, tensors = self._frame, None if cancelled else self._tensors
        self._frame = self._tensors = None
        consumed = self._receipts.next(self._nbytes)
        self._sink.deliver(self._peer, frame, tensors, self._nbytes, consumed)

    def _say(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
