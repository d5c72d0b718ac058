"""The receiving end of a UCX link: posts receives ahead, and assembles frames."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from sps2.common.errors import Invalid
from sps2.common.transport import frame as frames
from sps2.common.transport.frame import Frame
from sps2.common.transport.interfaces import Sink
from sps2.common.transport.receipts import Receipts
from sps2.common.transport.ucx_driver import Endpoint
from sps2.common.transport.ucx_link import (
    CANCELLED,
    CHUNK_BYTES,
    CHUNKED,
    COMPLETE,
    GOODBYE,
    INLINE,
    MESSAGE_BYTES,
    PREFIX,
    WINDOW,
    chunk_tag,
    cut,
    message_tag,
)

MESSAGES = 6
"""Number of receives that are posted ahead."""


class _Message:
    """A receive buffer for one message."""

    __slots__ = ("arrived", "memory")

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(MESSAGE_BYTES))
        self.arrived = False


class UcxReceiver:
    """Reads one peer's frames, which carry tags of `slot`.

    Args:
        say: sends bytes to the peer, for receipts.
    """

    def __init__(
        self, peer: str, endpoint: Endpoint, slot: int, sink: Sink, say: Callable[[bytes], None]
    ) -> None:
        self._peer = peer
        self._endpoint = endpoint
        self._slot = slot
        self._sink = sink
        self._messages: deque[_Message] = deque()  # in the order in which they were posted
        self._frame: Frame | None = None  # whose payload comes in chunks
        self._tensors: tuple[Tensor, ...] | None = None
        self._chunks: Iterator[memoryview] = iter(())
        self._under_way = 0
        self._number = 0
        self._nbytes = 0
        self._trash: memoryview | None = None
        self._receipts = Receipts(say)
        self._closed = False

    def start(self) -> None:
        """Post the first receives.

        Raises:
            ConnectionError: the endpoint is broken.
        """
        for _ in range(MESSAGES):
            self._post(_Message())
        self._advance()

    def close(self) -> None:
        """Stop receiving. The driver keeps buffers of receives that are under way."""
        self._closed = True
        self._receipts.close()
        self._tensors = None

    def _post(self, message: _Message) -> None:
        tag = message_tag(self._slot)
        done = partial(self._arrived, message)
        message.arrived = False
        self._messages.append(message)
        message.arrived = self._endpoint.recv(message.memory, tag, done)

    def _arrived(self, message: _Message, error: str) -> None:
        message.arrived = True
        self._check(error)
        self._advance()

    def _chunk_arrived(self, error: str) -> None:
        self._under_way -= 1
        self._check(error)
        self._advance()

    def _check(self, error: str) -> None:
        if error and not self._closed:
            self._sink.counters["bad_frames"] += "Truncated" in error
            self._sink.gone(self._peer, f"receiving failed: {error}")

    def _advance(self) -> None:
        try:
            while not self._closed:
                self._fill()
                if self._under_way or not self._messages[0].arrived:
                    return
                message = self._messages.popleft()
                self._read(message.memory)
                if not self._closed:
                    self._post(message)
        except Invalid as error:
            self._sink.counters["bad_frames"] += 1
            self._sink.gone(self._peer, f"it sent garbage: {error}")
        except (ConnectionError, MemoryError, RuntimeError) as error:  # torch: out of memory
            self._check(str(error))

    def _fill(self) -> None:
        while self._under_way < WINDOW and (chunk := next(self._chunks, None)) is not None:
            self._number += 1
            tag = chunk_tag(self._slot, self._number)
            if not self._endpoint.recv(chunk, tag, self._chunk_arrived):
                self._under_way += 1

    def _read(self, memory: memoryview) -> None:
        kind, length = PREFIX.unpack_from(memory)
        if kind == GOODBYE:
            self._sink.gone(self._peer, "it closed", goodbye=True)
        elif kind in (COMPLETE, CANCELLED) and self._frame is not None:
            frame, tensors = self._frame, self._tensors
            self._frame = self._tensors = None
            self._deliver(frame, tensors if kind == COMPLETE else None, self._nbytes + PREFIX.size)
        elif kind in (INLINE, CHUNKED) and self._frame is None:
            if length > frames.MAX_HEADER_BYTES:
                raise Invalid(f"a header of {length} bytes")
            start = PREFIX.size + length
            frame = frames.decode(memory[PREFIX.size : start])
            self._nbytes = start + frame.nbytes
            self._sink.meter.begin(self._peer, self._nbytes)
            tensors = frames.allocate(frame) if self._sink.wants(frame) else None
            if kind == CHUNKED:
                self._frame, self._tensors = frame, tensors
                self._chunks = self._targets(frame, tensors)
            else:
                self._copy(frame, tensors, memory[start:])
        else:
            raise Invalid("a message out of turn")

    def _copy(self, frame: Frame, tensors: tuple[Tensor, ...] | None, payload: memoryview) -> None:
        if frame.nbytes > len(payload):
            raise Invalid("a payload longer than its message")
        start = 0
        for tensor in tensors or ():
            view = frames.as_bytes(tensor)
            view[:] = payload[start : start + len(view)]
            start += len(view)
        self._deliver(frame, tensors, self._nbytes)

    def _deliver(self, frame: Frame, tensors: tuple[Tensor, ...] | None, nbytes: int) -> None:
        self._sink.deliver(self._peer, frame, tensors, nbytes, self._receipts.next(nbytes))

    def _targets(self, frame: Frame, tensors: tuple[Tensor, ...] | None) -> Iterator[memoryview]:
        if tensors is not None:
            yield from cut(map(frames.as_bytes, tensors))
            return
        if self._trash is None:
            self._trash = memoryview(bytearray(CHUNK_BYTES))
        for part in frame.parts:
            for start in range(0, part.nbytes, CHUNK_BYTES):
                yield self._trash[: min(CHUNK_BYTES, part.nbytes - start)]
