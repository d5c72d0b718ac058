"""The resident memory of this process."""

from contextlib import suppress

import psutil


class Resident:
    """Measures the resident set size of this process."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._last = 0

    def nbytes(self) -> int:
        """Bytes now; the last known value if /proc cannot be read for lack of file
        descriptors."""
        with suppress(OSError):
            self._last = int(self._process.memory_info().rss)
        return self._last
