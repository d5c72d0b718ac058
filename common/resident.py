"""The memory that this process has resident."""

from contextlib import suppress

import psutil


class Resident:
    """Its size, whenever it is asked for."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._last = 0

    def nbytes(self) -> int:
        """That of a moment ago where no file can be opened to see: connections took all
        descriptors."""
        with suppress(OSError):
            self._last = int(self._process.memory_info().rss)
        return self._last
