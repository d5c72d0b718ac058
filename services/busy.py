"""How busy a thread is, read from the kernel's clock: measuring costs the thread nothing."""

import threading
import time


class ThreadClock:
    """CPU seconds of the thread that creates it; readable from any thread, also after its end."""

    def __init__(self) -> None:
        # created on its own thread: another thread may get the number of one that has ended
        clock = getattr(time, "pthread_getcpuclockid", None)  # macOS has none
        self._clock: int | None = clock and clock(threading.get_ident())

    def counters(self) -> dict[str, float]:
        """`busy_s` in seconds; empty where the system does not report it."""
        if self._clock is None:
            return {}
        try:
            return {"busy_s": time.clock_gettime(self._clock)}
        except OSError:
            return {}
