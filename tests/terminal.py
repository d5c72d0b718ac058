"""A program in a terminal of its own: what it draws is interpreted as a terminal would."""

import os
import pty
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pyte

PATIENCE_S = 60.0


class Terminal:
    """A running program and its screen."""

    def __init__(self, command: Sequence[str], width: int, height: int, cwd: Path | None) -> None:
        self._screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._ours, theirs = pty.openpty()
        ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        environment = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")
        } | {"TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )
        os.close(theirs)
        self.raw = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):
            while data := os.read(self._ours, 1 << 16):
                with self._lock:
                    self.raw += data
                    self._stream.feed(data)

    @property
    def rows(self) -> list[str]:
        """What the screen shows."""
        with self._lock:
            return list(self._screen.display)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def resize(self, width: int, height: int) -> None:
        """As a user does who drags the window's corner."""
        with self._lock:
            self._screen.resize(height, width)
        ioctl(self._ours, TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def until(self, shows: Callable[[list[str]], bool], what: str = "") -> list[str]:
        """The screen as soon as it shows that.

        It may be in the midst of being drawn: what is to be seen together belongs into `shows`.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        before: list[str] = []
        while not shows(rows := self.rows) or rows != before:
            before = rows
            ended = self.process.poll() is not None
            if ended or time.monotonic() > deadline_s:
                screen = "\n".join(rows)
                raise AssertionError(f"{'ended' if ended else 'waited'}: {what}\n{screen}")
            time.sleep(0.05)
        return rows

    def wait(self) -> int:
        """The exit code, once everything is drawn."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(PATIENCE_S)
        os.close(self._ours)


@contextmanager
def terminal(
    command: Sequence[str], width: int = 80, height: int = 24, cwd: Path | None = None
) -> Iterator[Terminal]:
    """The program runs for as long as the block, at most."""
    made = Terminal(command, width, height, cwd)
    try:
        yield made
    finally:
        made.close()
