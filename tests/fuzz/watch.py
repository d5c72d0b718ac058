"""Finds what must not happen while inputs are parsed: faults, hangs, and growth."""

import asyncio
import gc
import logging
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .target import Pieces, Target

CPU_S = 60.0
"""Seconds of computing that one input may take, which a busy machine does not lengthen."""
WAIT_S = 300.0
"""Seconds after which an answer is not coming any more."""
CHECKS = 200
"""Inputs between two checks that the parser still does its work."""
SAMPLES = 12
GROWTH_OBJECTS = 20_000
GROWTH_MB = 100
GROWTH_DESCRIPTORS = 40
ROOT = Path(__file__).parents[2]
SOURCES = tuple(f"{ROOT / folder}{os.sep}" for folder in ("cli", "common", "kernels", "services"))
PLACES = 30
"""Findings in different places that are kept; the same place counts only once."""


class Hang(BaseException):
    """An input is not done after `CPU_S`; no parser catches this."""


class Finding(NamedTuple):
    """Something that must not happen. seed: of the input that was parsed; -1: of none alone."""

    seed: int
    what: str
    detail: str


class Size(NamedTuple):
    """What a process holds: Python's objects, memory and descriptors."""

    inputs: int
    objects: int
    memory_mb: float
    descriptors: int


@dataclass
class Report:
    """What became of the inputs of a target."""

    target: str
    inputs: int = 0
    said: int = 0
    """Inputs that were refused in words."""
    took_s: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    repeated: int = 0
    """Faults in places where there was one before."""
    sizes: list[Size] = field(default_factory=list)
    limits: tuple[int, float, int] = (GROWTH_OBJECTS, GROWTH_MB, GROWTH_DESCRIPTORS)
    _places: set[str] = field(default_factory=set)

    def found(self, seed: int, place: str, what: str, detail: str = "") -> bool:
        """Add a finding; returns False if its place is known."""
        if place in self._places or len(self._places) >= PLACES:
            self.repeated += 1
            return False
        self._places.add(place)
        self.findings.append(Finding(seed, what, detail))
        return True

    def weigh(self) -> None:
        """Compare the second half of the sizes: what a parser holds must not grow with inputs."""
        if len(self.sizes) < 4:
            return
        middle, last = self.sizes[len(self.sizes) // 2], self.sizes[-1]
        for name, most, before, after in zip(
            ("objects", "MB of memory", "descriptors"),
            self.limits,
            middle[1:],
            last[1:],
            strict=True,
        ):
            if after - before > most:
                what = (
                    f"{after - before:.0f} more {name} after {last.inputs - middle.inputs} inputs"
                )
                self.found(-1, name, what)

    def lines(self) -> list[str]:
        rate = self.inputs / self.took_s if self.took_s else 0.0
        first, last = (self.sizes[0], self.sizes[-1]) if self.sizes else (None, None)
        grew = ""
        if first and last:
            grew = (
                f"; objects {last.objects - first.objects:+}, memory "
                f"{last.memory_mb - first.memory_mb:+.0f} MB, descriptors "
                f"{last.descriptors - first.descriptors:+}"
            )
        return [
            f"{self.target}: {self.inputs} inputs in {self.took_s:.0f} s ({rate:.0f}/s), "
            f"{self.said} refused in words, {len(self.findings)} findings "
            f"(+{self.repeated} repeated){grew}",
            *(f"  seed {each.seed}: {each.what}\n{each.detail}" for each in self.findings),
        ]


class _Listener(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.faults: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        place = _place(error) if error is not None else f"{record.pathname}:{record.lineno}"
        detail = _told(error) if error is not None else ""
        self.faults.append((place, f"logged: {record.getMessage()[:300]}\n{detail}"))

    def context(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        place = _place(error) if error is not None else str(context.get("message"))
        detail = _told(error) if error is not None else ""
        self.faults.append((place, f"in the event loop: {context.get('message')}\n{detail}"))

    def unraisable(self, given: Any) -> None:
        self.faults.append((_place(given.exc_value), f"unraisable: {_told(given.exc_value)}"))


@contextmanager
def _listening() -> Iterator[_Listener]:
    listener, loop, hook = _Listener(), asyncio.get_running_loop(), sys.unraisablehook
    before = loop.get_exception_handler()
    logging.getLogger().addHandler(listener)
    loop.set_exception_handler(listener.context)
    sys.unraisablehook = listener.unraisable
    try:
        yield listener
    finally:
        logging.getLogger().removeHandler(listener)
        loop.set_exception_handler(before)
        sys.unraisablehook = hook


@contextmanager
def _bounded(cpu_s: float) -> Iterator[None]:
    """Raise `Hang` in the main thread when this process has computed for so long."""

    def late(number: int, frame: object) -> None:
        raise Hang(f"not done after {cpu_s:g} s of computing")

    before = signal.signal(signal.SIGPROF, late)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


async def tried(
    target: Target,
    first: int,
    *,
    count: int | None = None,
    seconds: float | None = None,
    cpu_s: float = CPU_S,
    current: Path | None = None,
    limits: tuple[int, float, int] = (GROWTH_OBJECTS, GROWTH_MB, GROWTH_DESCRIPTORS),
) -> Report:
    """Feed inputs of the seeds from `first` on to a target.

    Args:
        count, seconds: how many, or for how long.
        cpu_s: seconds of computing that one input may take.
        current: a file that always has the seed of the current input, for whoever finds this
            process ended.
        limits: objects, MB and descriptors by which the target may grow.
    """
    report = Report(target.name, limits=limits)
    seeds = os.open(current, os.O_WRONLY | os.O_CREAT, 0o600) if current is not None else None
    since_s = time.monotonic()
    step = max(1, count // SAMPLES) if count is not None else 0
    next_s = 0.0
    with _listening() as listener, _bounded(cpu_s):
        async with target:
            seed = first
            gc.freeze()  # what is here already need not be looked through again
            while True:
                took_s = time.monotonic() - since_s
                is_over = (
                    report.inputs >= count if count is not None else took_s >= (seconds or 0.0)
                )
                due = report.inputs % step == 0 if step else took_s >= next_s
                if due or is_over:
                    report.sizes.append(_size(report.inputs))
                    next_s = took_s + (seconds or 0.0) / SAMPLES
                if is_over:
                    break
                if seeds is not None:
                    os.pwrite(seeds, f"{seed:<12}".encode(), 0)
                pieces = target.case(random.Random(f"{target.name} {seed}"))
                await _one(report, target, seed, pieces, cpu_s)
                if report.inputs % CHECKS == 0 and not report.findings:
                    await _check(report, target, seed)
                for place, what in listener.faults:
                    report.found(seed, place, what)
                listener.faults.clear()
                seed += 1
            if not report.findings:
                await _check(report, target, seed)
        for place, what in listener.faults:
            report.found(seed, place, what)
    gc.unfreeze()
    if seeds is not None:
        os.close(seeds)
    report.took_s = time.monotonic() - since_s
    report.weigh()
    return report


async def _one(report: Report, target: Target, seed: int, pieces: Pieces, cpu_s: float) -> None:
    report.inputs += 1
    try:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        async with asyncio.timeout(WAIT_S):
            await target.feed(pieces)
        await asyncio.sleep(0)  # the loop forgets timers that did not go off
    except target.said as error:
        report.said += 1
        try:
            str(error)
        except Exception as fault:
            report.found(seed, _place(fault), "an error that cannot be said", _told(fault))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise
    except TimeoutError as error:
        report.found(seed, "hang", f"no answer in {WAIT_S:g} s", _told(error))
    except BaseException as error:  # a panic of Rust is no Exception
        report.found(seed, _place(error), f"{type(error).__name__}: {_short(error)}", _told(error))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


async def _check(report: Report, target: Target, seed: int) -> None:
    try:
        async with asyncio.timeout(WAIT_S):
            await target.check()
    except Exception as error:
        report.found(seed, "check", f"it does no work any more: {_short(error)}", _told(error))


def _size(inputs: int) -> Size:
    gc.collect()
    pages = 0
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory_mb = pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    return Size(inputs, sys.getallocatedblocks(), memory_mb, descriptors)


def _place(error: BaseException | None) -> str:
    """The type of an error, and the last line of ours on its way."""
    if error is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [each for each in frames if each.filename.startswith(SOURCES)] or frames
    return f"{type(error).__name__} {ours[-1].filename}:{ours[-1].lineno}" if ours else repr(error)


def _short(error: BaseException) -> str:
    try:
        return str(error)[:300]
    except Exception:
        return "?"


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-3000:]
