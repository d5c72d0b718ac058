"""The compute thread of a prefill rank: the arithmetic of the most urgent prefill goes first."""

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from sps2.common.messages.prefill import LEAST_SHARE
from sps2.common.model.attend import Run
from sps2.services.busy import ThreadClock

Result = TypeVar("Result")
Execute = Callable[[Callable[[], Any]], asyncio.Future[Any]]
"""Begins one piece of arithmetic beside the event loop."""

UNKNOWN_PIECE_S = 0.1
"""How long the first piece of a prefill is expected to take."""
ABSENT_S = 0.5
"""A prefill idle for this long no longer delays others."""


class Thread:
    """A thread that computes, on the CPU or by launching work on a GPU.

    Args:
        enter: runs a piece of arithmetic, on the thread.
    """

    def __init__(self, enter: Callable[[Callable[[], Any]], Any]) -> None:
        self._enter = enter
        self._thread = ThreadPoolExecutor(1, "compute")
        self.busy = self._thread.submit(ThreadClock).result()
        """How busy the thread is."""

    def __call__(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._thread, self._enter, work)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


class _Prefill:
    """A prefill under way; `pieces` wait for the thread: number, work, result."""

    def __init__(self, urgency: Callable[[], float] | None, now_s: float) -> None:
        self.urgency = urgency
        self.pieces: deque[tuple[int, Callable[[], Any], asyncio.Future[Any]]] = deque()
        self.computed_s = now_s
        """When it last had a piece."""
        self.piece_s = UNKNOWN_PIECE_S
        """How long its last piece took."""

    def drop_cancelled(self) -> None:
        while self.pieces and self.pieces[0][2].done():
            self.pieces.popleft()


class Compute:
    """Runs the arithmetic of several prefills, one piece at a time. Used on one event loop.

    Of the pieces that wait, one of the most urgent prefill runs first. While that has none ready,
    the others are held back: a short prompt has some pieces in every layer, and each would wait for
    a long piece of another prompt. A prefill is preempted between pieces only, and its state stays
    where it is.

    Those held back get `LEAST_SHARE` of the time, in order of arrival of their pieces.

    The ranks of a group need not agree on what runs. With gather and CSA no rank waits for a later
    one; with the other methods all shards order the same prefills alike.
    """

    def __init__(self, execute: Execute, clock: Callable[[], float] = time.monotonic) -> None:
        self._execute = execute
        self._clock = clock
        self._numbers = itertools.count()
        self._prefills: list[_Prefill] = []
        self._running: asyncio.Future[Any] | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._held_since_s: float | None = None
        self._given_s = 0.0
        """How long those held back have computed since then."""
        self._held_s = 0.0

    @contextmanager
    def prefill(self, urgency: Callable[[], float] | None) -> Iterator[Run]:
        """Register a prefill while the context is open.

        Args:
            urgency: the larger, the more urgent; read whenever a piece is chosen. None: as urgent
                as the most urgent of the others.

        Yields:
            Runs pieces of the prefill, in the order of the calls.
        """
        prefill = _Prefill(urgency, self._clock())

        async def run(work: Callable[[], Result]) -> Result:
            result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            prefill.pieces.append((next(self._numbers), work, result))
            self.look()
            return await result

        self._prefills.append(prefill)
        try:
            yield run
        finally:
            self._prefills.remove(prefill)
            self.look()

    def counters(self) -> dict[str, float]:
        """For heartbeats: seconds so far in which a prefill was held back."""
        since_s = self._held_since_s
        now_s = 0.0 if since_s is None else self._clock() - since_s
        return {"held_back_s": self._held_s + now_s}

    def look(self) -> None:
        """Run the next piece if the thread is free. Call it when an urgency has changed."""
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if self._running is not None:
            return
        now_s = self._clock()
        for prefill in self._prefills:
            prefill.drop_cancelled()
        present = [p for p in self._prefills if p.pieces or now_s < p.computed_s + ABSENT_S]
        known = {prefill: prefill.urgency() for prefill in present if prefill.urgency}
        most = max(known.values(), default=0.0)
        urgencies = {prefill: known.get(prefill, most) for prefill in present}
        self._note_held(min(urgencies.values(), default=0.0) < most, now_s)
        ready = sorted((p for p in present if p.pieces), key=lambda prefill: prefill.pieces[0][0])
        first = [prefill for prefill in ready if urgencies[prefill] == most]
        held = [prefill for prefill in ready if urgencies[prefill] < most]
        if held and now_s >= self._due_s(held[0]):
            self._start(held[0], now_s, is_held=True)
        elif first:
            self._start(first[0], now_s)
        elif held:
            idle = [p.computed_s for p in present if not p.pieces and urgencies[p] == most]
            absent_s = min(idle, default=math.inf) + ABSENT_S
            self._wake_at(min(self._due_s(held[0]), absent_s), now_s)

    def _note_held(self, is_held: bool, now_s: float) -> None:
        if is_held and self._held_since_s is None:
            self._held_since_s, self._given_s = now_s, 0.0
        elif not is_held and self._held_since_s is not None:
            self._held_s += now_s - self._held_since_s
            self._held_since_s = None

    def _due_s(self, held: _Prefill) -> float:
        """When the share reserved for held-back prefills next allows a piece."""
        assert self._held_since_s is not None
        return self._held_since_s + (self._given_s + held.piece_s) / LEAST_SHARE

    def _wake_at(self, at_s: float, now_s: float) -> None:
        delay_s = max(0.001, at_s - now_s)
        self._wake = asyncio.get_running_loop().call_later(delay_s, self.look)

    def _start(self, prefill: _Prefill, now_s: float, is_held: bool = False) -> None:
        _, work, result = prefill.pieces.popleft()
        self._running = self._execute(work)

        def end(ended: asyncio.Future[Any]) -> None:
            self._running = None
            prefill.computed_s = self._clock()
            prefill.piece_s = prefill.computed_s - now_s
            self._given_s += prefill.piece_s * is_held
            _copy(ended, result)
            self.look()

        self._running.add_done_callback(end)


def _copy(ended: asyncio.Future[Any], to: asyncio.Future[Any]) -> None:
    """Pass on how a piece ended, unless nobody waits for it."""
    if ended.cancelled():
        to.cancel()
    elif (error := ended.exception()) is not None:
        if not to.done():
            to.set_exception(error)
    elif not to.done():
        to.set_result(ended.result())
