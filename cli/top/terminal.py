"""The terminal: keys in, pictures out."""

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.live import Live

from sps2.cli.top import keys
from sps2.cli.top.controls import Controls
from sps2.cli.top.monitor import Monitor
from sps2.cli.top.snapshot import Picture
from sps2.cli.top.view import view

DRAW_S = 1.0


class Screen:
    """Draws a monitor's picture once a second, and at once after a key or a change of size.

    Args:
        clock: the monitor's clock, in seconds.
    """

    def __init__(self, monitor: Monitor, console: Console, clock: Callable[[], float]) -> None:
        self._monitor = monitor
        self._console = console
        self._clock = clock
        self._controls = Controls()
        self._changed = asyncio.Event()
        self._picture: Picture = monitor.picture(clock())

    async def run(self) -> None:
        """Draw until the user quits."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self._changed.set)
        try:
            with (
                _cbreak(),
                self._reading(),
                Live(
                    console=self._console, screen=True, auto_refresh=False, redirect_stderr=False
                ) as live,
            ):
                while not self._controls.quit:
                    self._draw(live)
                    await self._pause()
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAW_S):
                await self._changed.wait()
        self._changed.clear()

    def _draw(self, live: Live) -> None:
        if not self._controls.paused:
            self._picture = self._monitor.picture(self._clock())
        width, height = self._console.size
        live.update(view(self._picture, self._controls, width, height), refresh=True)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        if not sys.stdin.isatty():
            yield
            return
        loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()

        def read() -> None:
            data = os.read(fd, 1024)
            if not data:  # the terminal is gone
                loop.remove_reader(fd)
                self._press("q")
            for key in keys.names(data):
                self._press(key)

        loop.add_reader(fd, read)
        try:
            yield
        finally:
            loop.remove_reader(fd)

    def _press(self, key: str) -> None:
        self._controls = self._controls.press(key, self._picture)
        self._changed.set()


@contextmanager
def _cbreak() -> Iterator[None]:
    """Have keys come one by one without echo; Ctrl-C still works."""
    if not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
