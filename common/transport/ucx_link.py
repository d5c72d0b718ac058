"""The sending end of a UCX link: small frames in one message, large ones followed by chunks."""

import asyncio
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from sps2.common.errors import PeerLost
from sps2.common.transport.credit import Consumed
from sps2.common.transport.interfaces import Sink
from sps2.common.transport.receipts import Unread
from sps2.common.transport.ucx_driver import Done, Endpoint

PREFIX = struct.Struct("<HH")  # kind, length of the header
INLINE, CHUNKED, COMPLETE, CANCELLED, GOODBYE = range(0x5301, 0x5306)
"""Kinds of message: a frame with its payload; a frame whose payload follows in chunks; after the
chunks, that the payload is valid or was cancelled; and the end of the link."""

MESSAGE_BYTES = 120 << 10
"""Fits a TCP segment of UCX (`ucx_library.SETTINGS`), and is below its rendezvous threshold."""
CHUNK_BYTES = 2 << 20
WINDOW = 6
"""Chunks of one link that are under way at a time."""

SLOT_BITS = 56

_CHUNKS = 1 << 7  # tags: 56 bits slot, 1 bit chunks or messages, 7 bits number of the chunk


def message_tag(slot: int) -> int:
    """The tag of all messages of a link; UCX keeps their order."""
    return slot << 8


def chunk_tag(slot: int, number: int) -> int:
    """The tag of a link's chunk number `number`, counted over all its frames."""
    return slot << 8 | _CHUNKS | number % _CHUNKS


def cut(views: Iterable[memoryview]) -> Iterator[memoryview]:
    """Cut a payload into chunks; both sides cut alike."""
    for view in views:
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]


class _Job:
    """A frame to be sent."""

    __slots__ = ("cancelled", "consumed", "done", "message", "payload", "started")

    def __init__(
        self, message: bytes, payload: Sequence[memoryview] | None, consumed: Consumed | None = None
    ) -> None:
        self.message = message
        self.payload = payload
        self.consumed = consumed
        self.started = self.cancelled = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class UcxLink:
    """Sends through a peer's endpoint with tags of `slot`, which the peer assigned."""

    def __init__(self, peer: str, endpoint: Endpoint, slot: int, sink: Sink) -> None:
        self._peer = peer
        self._endpoint = endpoint
        self._slot = slot
        self._sink = sink
        self._unread = Unread()
        self.received = self._unread.received
        """Called for each receipt; see `lifeline.Lifeline`."""
        self._jobs: deque[_Job] = deque()
        self._unfinished: set[_Job] = set()
        self._current: _Job | None = None
        self._chunks: Iterator[memoryview] = iter(())
        self._under_way = 0
        self._number = 0
        self._closed = False

    async def send(self, header: bytes, payload: Sequence[memoryview], consumed: Consumed) -> int:
        """See `links.Link`."""
        size = PREFIX.size + len(header) + sum(map(len, payload))
        if size <= MESSAGE_BYTES:
            message = b"".join((PREFIX.pack(INLINE, len(header)), header, *payload))
            job = _Job(message, None, consumed)
        else:
            job = _Job(PREFIX.pack(CHUNKED, len(header)) + header, payload, consumed)
            size += PREFIX.size
        self._submit(job)
        try:
            await job.done
        except asyncio.CancelledError:
            if job.started:
                job.cancelled = True  # the receiver drops the frame: its tensors may be overwritten
            elif job in self._jobs:
                self._jobs.remove(job)
                self._unfinished.discard(job)
                consumed()
            raise
        return size

    def goodbye(self) -> None:
        """Send a goodbye after all queued frames."""
        if not self._closed:
            self._submit(_Job(PREFIX.pack(GOODBYE, 0), None))

    def close(self) -> None:
        """Fail unsent frames with PeerLost. The driver keeps chunks that are under way."""
        self._closed = True
        for job in self._unfinished:
            if not job.done.done():
                job.done.set_exception(PeerLost(self._peer))
                job.done.exception()  # marks it as retrieved: nobody awaits a goodbye
        self._unfinished.clear()
        self._jobs.clear()
        self._current = None

    def _submit(self, job: _Job) -> None:
        if self._closed:
            raise PeerLost(self._peer)
        self._jobs.append(job)
        self._unfinished.add(job)
        self._advance()

    def _finish(self, job: _Job) -> None:
        self._unfinished.discard(job)
        if not job.done.done():
            job.done.set_result(None)

    def _advance(self) -> None:
        try:
            while self._jobs and self._current is None:
                job = self._jobs.popleft()
                job.started = True
                if job.consumed is not None:
                    self._unread.sent(job.consumed)
                if job.payload is None:
                    if self._post(job.message, partial(self._sent, job)):
                        self._finish(job)
                    continue
                self._current = job
                self._chunks = cut(job.payload)
                self._post(job.message, self._check)
                self._fill(job)
        except ConnectionError as error:
            self._sink.gone(self._peer, f"sending failed: {error}")

    def _fill(self, job: _Job) -> None:
        while self._under_way < WINDOW and (chunk := next(self._chunks, None)) is not None:
            self._number += 1
            tag = chunk_tag(self._slot, self._number)
            if not self._endpoint.send(chunk, tag, partial(self._sent_chunk, job)):
                self._under_way += 1
        if self._under_way == 0:
            kind = CANCELLED if job.cancelled else COMPLETE
            self._current = None
            self._post(PREFIX.pack(kind, 0), self._check)
            self._finish(job)

    def _post(self, message: bytes, done: Done) -> bool:
        return self._endpoint.send(message, message_tag(self._slot), done)

    def _sent(self, job: _Job, error: str) -> None:
        self._check(error)
        if not self._closed:
            self._finish(job)

    def _sent_chunk(self, job: _Job, error: str) -> None:
        self._check(error)
        if self._closed:
            return
        self._under_way -= 1
        try:
            self._fill(job)
        except ConnectionError as broken:
            self._sink.gone(self._peer, f"sending failed: {broken}")
        self._advance()

    def _check(self, error: str) -> None:
        if error and not self._closed:
            self._sink.gone(self._peer, f"sending failed: {error}")
