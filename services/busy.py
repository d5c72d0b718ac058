"""How busy a thread is, as the kernel counts it: nothing is measured where it works."""

import threading
import time


class ThreadClock:
    """CPU seconds of the thread that makes it; reading is safe on any thread, and after its end."""

    def __init__(self) -> None:
        # made on its own thread: the number of one that has ended is somebody else's
        clock = getattr(time, "pthread_getcpuclockid", None)  # macOS has none
        self._clock: int | None = clock and clock(threading.get_ident())

    def counters(self) -> dict[str, float]:
        """`busy_s`; nothing where the system does not tell."""
        if self._clock is None:
            return {}
        try:
            return {"busy_s": time.clock_gettime(self._clock)}
        except OSError:
            return {}
