"""The sending end of a TCP link: tensors are written to the socket without a copy."""

import asyncio
import struct
from collections import deque
from collections.abc import Sequence

from sps2.common.errors import PeerLost
from sps2.common.transport.connection import Connection
from sps2.common.transport.credit import Consumed
from sps2.common.transport.interfaces import Sink
from sps2.common.transport.lifeline import Lifeline
from sps2.common.transport.receipts import Unread

PREFIX = struct.Struct("<HH")  # kind, length of the header
FRAME = 0x5350
GOODBYE = 0x4259
TURN_BYTES = 4 << 20
"""Maximum of bytes written in one turn of the loop, so that other tasks get theirs."""


class _Job:
    """A frame to be sent."""

    __slots__ = ("consumed", "done", "started", "trailer", "views")

    def __init__(
        self, views: list[memoryview], trailer: bytearray, consumed: Consumed | None = None
    ) -> None:
        self.views = views
        self.trailer = trailer
        self.consumed = consumed
        self.started = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class TcpLink:
    """Owns a connection; frames leave in the order of `send`."""

    def __init__(self, peer: str, connection: Connection, sink: Sink) -> None:
        self._peer = peer
        self._connection = connection
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[_Job] = deque()
        self._writing = False
        self._closed = False
        self._unread = Unread()
        self._lifeline = Lifeline(connection, self._ended, self._unread.received)

    async def send(self, header: bytes, payload: Sequence[memoryview], consumed: Consumed) -> int:
        """See `links.Link`."""
        trailer = bytearray(1)
        prefix = PREFIX.pack(FRAME, len(header)) + header
        views = [memoryview(prefix), *filter(len, payload), memoryview(trailer)]
        nbytes = sum(map(len, views))
        job = self._submit(_Job(views, trailer, consumed))
        try:
            await job.done
        except asyncio.CancelledError:
            if job.started:
                trailer[0] = 1  # the receiver drops the frame, whose tensors may now be overwritten
            elif job in self._jobs:
                self._jobs.remove(job)
                consumed()
            raise
        return nbytes

    def goodbye(self) -> None:
        """Send a goodbye after all queued frames."""
        if not self._closed:
            self._submit(_Job([memoryview(PREFIX.pack(GOODBYE, 0))], bytearray()))

    def close(self) -> None:
        """End the link; frames that were not sent fail with PeerLost."""
        if self._closed:
            return
        self._closed = True
        if self._writing:
            self._loop.remove_writer(self._connection.fileno())
        self._lifeline.close()
        for job in self._jobs:
            if not job.done.done():
                job.done.set_exception(PeerLost(self._peer))
                job.done.exception()  # marks it as retrieved: nobody awaits a goodbye
        self._jobs.clear()

    def _submit(self, job: _Job) -> _Job:
        if self._closed:
            raise PeerLost(self._peer)
        self._jobs.append(job)
        if not self._writing:
            self._pump()
        return job

    def _pump(self) -> None:
        left = TURN_BYTES
        try:
            while self._jobs and left > 0:
                job = self._jobs[0]
                if not job.started:
                    job.started = True
                    if job.consumed is not None:
                        self._unread.sent(job.consumed)
                left -= self._write(job)
                if not job.views:
                    self._jobs.popleft()
                    if not job.done.done():
                        job.done.set_result(None)
        except BlockingIOError:
            pass
        except OSError as error:
            self._sink.gone(self._peer, f"sending failed: {error}")
            return
        if bool(self._jobs) != self._writing:
            self._writing = bool(self._jobs)
            if self._writing:
                self._loop.add_writer(self._connection.fileno(), self._pump)
            else:
                self._loop.remove_writer(self._connection.fileno())

    def _write(self, job: _Job) -> int:
        written = left = self._connection.sendmsg(job.views)
        while left:
            view = job.views[0]
            if left < len(view):
                job.views[0] = view[left:]
                break
            left -= len(view)
            del job.views[0]
        return written

    def _ended(self, why: str, goodbye: bool) -> None:
        self._sink.gone(self._peer, why, goodbye=goodbye)
