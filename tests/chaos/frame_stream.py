"""Splits what a dialler of the data plane sends into its handshake and its frames."""

from sps2.common.transport import frame as frames
from sps2.common.transport.hello import _PREFIX as HELLO
from sps2.common.transport.proof import MAC_BYTES
from sps2.common.transport.tcp_link import FRAME, PREFIX


class FrameStream:
    """The bytes of one connection; `feed` returns the pieces that are whole, the Hello first."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_open = False

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes, and take the whole pieces out."""
        self._rest += data
        pieces = []
        while size := self._size():
            pieces.append(self._rest[:size])
            self._rest = self._rest[size:]
            self._is_open = True
        return pieces

    def _size(self) -> int:
        """Bytes of the first piece; 0 if it is not whole yet."""
        size = self._frame_size() if self._is_open else self._hello_size()
        return size if size <= len(self._rest) else 0

    def _hello_size(self) -> int:
        if len(self._rest) < HELLO.size:
            return 0
        return HELLO.size + HELLO.unpack_from(self._rest)[2] + MAC_BYTES

    def _frame_size(self) -> int:
        if len(self._rest) < PREFIX.size:
            return 0
        kind, length = PREFIX.unpack_from(self._rest)
        size = PREFIX.size + length
        if kind != FRAME or len(self._rest) < size:
            return size
        return size + frames.decode(self._rest[PREFIX.size : size]).nbytes + 1
