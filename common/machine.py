"""Differences between operating systems, and substitutes for what only Linux has.

SPS2 is made and tested for Linux. Elsewhere (macOS) everything works that does not need UCX, glibc
or the C++ kernels, untested.
"""

import ctypes
import os
import platform
import signal
import sys
import threading
import time
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
PARENT_S = 1.0
"""Interval of checks that the parent still runs, where the kernel sends no signal."""
SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's `prctl`."""


def untested() -> str:
    """What is not supported on this system, in words; empty on Linux."""
    if _is_linux():
        return ""
    return (
        f"SPS2 is tested on Linux only; on {platform.system()} there is no UCX, and memory that is "
        "freed is not tuned"
    )


def cores() -> int:
    """Cores that this process may use; at least 1."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The model of the CPU."""
    named = [line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """The CPU's features by Linux's names; empty if they are not known."""
    names = ("flags", "Features")
    return {
        flag
        for line in _cpu_info()
        if line.startswith(names)
        for flag in line.split(":")[1].split()
    }


def end_with(parent: int) -> None:
    """Have this process receive SIGTERM when its parent is gone.

    Args:
        parent: pid of the process that must be the parent now; if it is not, this process exits.
    """
    if _is_linux():
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    else:
        threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()
    if os.getppid() != parent:
        sys.exit(0)


def glibc(name: str) -> "ctypes._NamedFuncPointer | None":
    """A function that only Linux's C library has; None elsewhere."""
    return getattr(ctypes.CDLL(None), name, None) if _is_linux() else None


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_linux() -> bool:
    return sys.platform.startswith("linux")


def _cpu_info() -> list[str]:
    try:
        return CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
