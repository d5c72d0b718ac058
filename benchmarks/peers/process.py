"""A peer's process and those that it starts: their log, their memory, their CPU time, their end."""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

GRACE_S = 60.0
LIMIT_BYTES = 16 << 20
"""Of one line on a pipe."""


@dataclass(frozen=True)
class Memory:
    """Proportional set size of all processes, bytes: a page that n share counts as 1/n in each."""

    pss: int = 0
    anonymous: int = 0
    """Heaps, and tensors that were computed or copied."""
    file: int = 0
    """Programs, libraries, and weights that are mapped from their file."""
    shared: int = 0
    """Shared memory."""


class Process:
    """Starts `argv`; what it writes to standard error, or without `piped` at all, goes to `log`."""

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], log: Path, piped: bool = False
    ) -> None:
        self._argv = argv
        self._environment = environment
        self._log = log
        self._piped = piped
        self._child: asyncio.subprocess.Process | None = None
        self.since_s = 0.0
        """When it was started, by `time.perf_counter`."""

    async def start(self) -> None:
        with self._log.open("wb") as log:
            self.since_s = time.perf_counter()
            self._child = await asyncio.create_subprocess_exec(
                *self._argv,
                env=os.environ | self._environment,
                stdin=asyncio.subprocess.PIPE if self._piped else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if self._piped else log,
                stderr=log,
                limit=LIMIT_BYTES,
                cwd=self._log.parent,  # Python puts it before its packages, and ours has `kernels`
                start_new_session=True,  # Ctrl-C is for us, who stop it
            )

    @property
    def has_ended(self) -> bool:
        return self._child is None or self._child.returncode is not None

    async def write(self, line: bytes) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        self._child.stdin.write(line + b"\n")
        await self._child.stdin.drain()

    async def read(self) -> bytes:
        """The next line of its standard output; empty at its end."""
        assert self._child is not None
        assert self._child.stdout is not None
        return await self._child.stdout.readline()

    def log_end(self, lines: int = 20) -> str:
        """The last lines of its log, below where the whole is."""
        text = self._log.read_text(errors="replace", encoding="utf-8") if self._log.exists() else ""
        end = "\n".join(f"    {line}" for line in text.splitlines()[-lines:])
        return f"the end of {self._log}:\n{end or '    (empty)'}"

    def memory(self) -> Memory:
        """Of all its processes now."""
        sums = dict.fromkeys(("Pss:", "Pss_Anon:", "Pss_File:", "Pss_Shmem:"), 0)
        for process in self._all():
            with suppress(OSError):  # it has ended, or is just ending
                for line in (
                    Path(f"/proc/{process.pid}/smaps_rollup")
                    .read_text(encoding="utf-8")
                    .splitlines()
                ):
                    name, *rest = line.split()
                    if name in sums:
                        sums[name] += int(rest[0]) << 10
        return Memory(*sums.values())

    def cpu_s(self) -> float:
        """CPU time that its processes have had."""
        total = 0.0
        for process in self._all():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    async def stop(self) -> None:
        """End it and every process that it started; those that do not listen are killed."""
        if self._child is None:
            return
        others = self._all()[1:]
        try:
            if self._child.returncode is None:
                self._child.terminate()
                with suppress(TimeoutError):
                    async with asyncio.timeout(GRACE_S):
                        await self._child.wait()
        finally:  # also where this task is cancelled meanwhile
            if self._child.returncode is None:
                self._child.kill()
            for process in others:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            await self._child.wait()
            await asyncio.to_thread(psutil.wait_procs, others, GRACE_S)

    def _all(self) -> list[psutil.Process]:
        if self._child is None:
            return []
        try:
            root = psutil.Process(self._child.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
