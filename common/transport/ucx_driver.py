"""Drives UCX on an asyncio loop: bounded turns, idle without work, memory kept while in use."""

import asyncio
import logging
import select
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2s
from itertools import count
from time import monotonic, perf_counter
from typing import Any

from sps2.common.transport import ucx_library

Memory = memoryview | bytes
Done = Callable[[str], None]
"""Called when a request has completed, with what went wrong or ""."""

TURN_STEPS = 64
TURN_S = 500e-6
WATCH_S = 0.25
"""Maximum delay of a wake-up that UCX failed to signal."""

RESCUE_S = 1e-3
BUSY_TURNS = 16
BUSY_S = 0.001
CLOSE_S = 2.0
SEAL_BYTES = 8

_logger = logging.getLogger(__name__)
_undead: list[object] = []
"""Closed workers with requests that never completed: freeing their memory would not be safe."""


class Driver:
    """A UCX worker, progressed by the running loop; call it only on that loop.

    A turn is bounded, so that timers and sockets get theirs. It comes when the worker's file
    descriptor is readable, and after every call into UCX, since completions within a call are not
    signalled. A slow watchdog catches missed signals; `counters["ucx_rescues"]` counts them.
    """

    def __init__(self, host: str, counters: Counter[str]) -> None:
        self._ucx, self._array = ucx_library.load()
        self._loop = asyncio.get_running_loop()
        self._counters = counters
        self._worker = self._ucx.UCXWorker(
            self._ucx.UCXContext(ucx_library.device_options(host)),
            enable_delayed_submission=False,
            enable_python_future=False,
        )
        self._worker.init_blocking_progress_mode()
        self._fd: int = self._worker.epoll_file_descriptor
        self.address = _seal(bytes(self._worker.address))
        """The worker address for others to connect to."""
        self._numbers = count()
        self._pending: dict[int, tuple[Any, Memory, Done]] = {}
        self._queued = self._armed = self._sweep = self._closed = False
        self._busy = self._turns = self._watched = 0
        self._loop.add_reader(self._fd, self._turn)
        self._watchdog = self._loop.call_later(WATCH_S, self._watch)
        self.kick()

    def connect(self, address: bytes, lost: Callable[[], None]) -> "Endpoint":
        """Make an endpoint to the worker at `address`; `lost` is called once if it breaks.

        Raises:
            ConnectionError: the worker is gone, or the address is malformed.
        """
        return Endpoint(self, address, lost)

    def track(self, request: Any, memory: Memory, done: Done) -> bool:
        """Keep `memory` until `request` completes, then call `done`.

        Returns:
            True if the request has completed already; then `done` is not called.

        Raises:
            ConnectionError: the request completed at once, with an error.
        """
        self.kick()
        if request.completed:
            if why := _error(request):
                raise ConnectionError(why)
            return True
        self._pending[next(self._numbers)] = (request, memory, done)
        return False

    @property
    def pending(self) -> int:
        """Number of requests that have not completed."""
        return len(self._pending)

    def kick(self, *, sweep: bool = False) -> None:
        """Schedule a turn; with `sweep` it also completes requests of closed endpoints."""
        self._sweep |= sweep
        if not self._queued and not self._closed:
            self._queued = True
            self._loop.call_soon(self._queued_turn)

    async def close(self) -> None:
        """Stop once the requests of closed endpoints have completed, or after CLOSE_S."""
        deadline = monotonic() + CLOSE_S
        self.kick(sweep=True)
        while self._pending and monotonic() < deadline:
            await asyncio.sleep(0.001)
            self.kick(sweep=True)
        self._closed = True
        self._loop.remove_reader(self._fd)
        self._watchdog.cancel()
        if self._pending:
            _logger.error("%d UCX requests never completed", len(self._pending))
            _undead.append(self)

    def _queued_turn(self) -> None:
        self._queued = False
        self._turn()

    def _turn(self) -> None:
        if self._closed:
            return
        self._armed = False
        self._turns += 1
        worked = self._progress()
        if self._sweep:
            self._sweep = False
            self._worker.cancel_inflight_requests()
            worked = True
        completed = [key for key, (request, _, _) in self._pending.items() if request.completed]
        for key in completed:
            request, _, done = self._pending.pop(key)
            try:
                done(_error(request))
            except Exception:  # the turn must go on, or other requests wait for the watchdog
                _logger.exception("a completed UCX request could not be handled")

        if worked or completed:
            self._busy = 0
            self.kick()
        elif self._worker.arm():
            self._armed = True
            self._busy = 0
        elif self._busy < BUSY_TURNS:
            self._busy += 1
            self.kick()
        elif not self._queued:
            self._queued = True
            self._loop.call_later(BUSY_S, self._queued_turn)

    def _progress(self) -> bool:
        started = perf_counter()
        for _ in range(TURN_STEPS):
            if not self._worker.progress_once():
                return False
            if perf_counter() - started > TURN_S:
                break
        return True

    def _watch(self) -> None:
        self._watchdog = self._loop.call_later(WATCH_S, self._watch)
        silent = self._armed and self._turns == self._watched  # for a whole period
        self._watched = self._turns
        if not silent or not self._pending:
            return
        started, pending = perf_counter(), set(self._pending)
        if not select.select([self._fd], [], [], 0)[0]:
            self._turn()
            # UCX's own keepalive completes nothing; a long turn may have met a new message
            rescued = not pending <= self._pending.keys()
            self._counters["ucx_rescues"] += rescued and perf_counter() - started < RESCUE_S


class Endpoint:
    """A UCX endpoint to one other worker, with error handling, for both directions."""

    def __init__(self, driver: Driver, address: bytes, lost: Callable[[], None]) -> None:
        self._driver = driver
        self._lost: Callable[[], None] | None = lost
        ucx = driver._ucx
        worker = _unseal(address)
        try:
            self._endpoint = ucx.UCXEndpoint.create_from_worker_address(
                driver._worker, ucx.UCXAddress.create_from_buffer(worker), True
            )
        except ucx.UCXError as error:
            raise ConnectionError(f"UCX cannot connect: {error}") from error
        self._endpoint.set_close_callback(self._broke)
        driver.kick()

    def send(self, memory: Memory, tag: int, done: Done) -> bool:
        """Begin to send `memory`; returns True if that is done already, else `done` is called.

        Raises:
            ConnectionError: the endpoint is broken.
        """
        return self._post(self._endpoint.tag_send, memory, tag, done)

    def recv(self, memory: memoryview, tag: int, done: Done) -> bool:
        """Begin to receive a message into `memory`; as `send`."""
        return self._post(self._endpoint.tag_recv, memory, tag, done)

    def close(self) -> None:
        """Close the endpoint; its requests complete, with errors, within the next turns."""
        self._lost = None
        with suppress(self._driver._ucx.UCXError):  # it may be broken already
            self._endpoint.close_blocking()
        self._driver.kick(sweep=True)

    def _post(self, post: Callable[..., Any], memory: Memory, tag: int, done: Done) -> bool:
        driver = self._driver
        try:
            request = post(driver._array(memory), driver._ucx.UCXXTag(tag))
        except driver._ucx.UCXError as error:
            raise ConnectionError(f"UCX: {error}") from error
        return driver.track(request, memory, done)

    def _broke(self, *_: object) -> None:
        self._driver.kick(sweep=True)
        self._driver._loop.call_soon(self._notify)

    def _notify(self) -> None:
        lost, self._lost = self._lost, None
        if lost is not None:  # it was not closed meanwhile
            lost()


def _seal(worker: bytes) -> bytes:
    return blake2s(worker, digest_size=SEAL_BYTES).digest() + worker


def _unseal(address: bytes) -> bytes:
    worker = address[SEAL_BYTES:]
    if not worker or _seal(worker) != address:  # UCX aborts the process on a malformed address
        raise ConnectionError("a malformed UCX worker address")
    return worker


def _error(request: Any) -> str:
    try:
        request.check_error()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
