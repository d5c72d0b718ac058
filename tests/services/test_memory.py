"""Freed memory is given back, or kept, as a process wants it."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
from sps2.services import memory
if sys.argv[1] == "keep":
    memory.keep()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [libc.malloc(8 << 20) for _ in range(10)]
    for piece in pieces:
        ctypes.memset(piece, 1, 8 << 20)
    for piece in pieces:
        libc.free(piece)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


def output(program: str, how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", program, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that is told")
def test_kept_memory_does_not_come_anew() -> None:
    assert output(FAULTS, "keep") < 0.1 * output(FAULTS, "return")


WRITES = """
import ctypes, mmap, resource, sys
from sps2.services import memory
room = mmap.mmap(-1, 8 << 20)
address = ctypes.addressof(ctypes.c_char.from_buffer(room))
room[100:104] = b"kept"
if sys.argv[1] == "back":
    memory.back([(address + 50, 4 << 20), (address + (4 << 20), (4 << 20) - 10)])
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
assert room[100:104] == b"kept"
for at in range(4096, 8 << 20, 4096):
    room[at] = 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_what_is_backed_is_written_without_faults_and_stays_as_it_is() -> None:
    if not sys.platform.startswith("linux") or tuple(
        map(int, platform.release().split(".")[:2])
    ) < (5, 14):
        pytest.skip("the system cannot do it")
    plain, backed = output(WRITES, "plain"), output(WRITES, "back")
    assert plain > 1000
    assert backed < 100


RETURNS = """
import ctypes, sys
from pathlib import Path
from sps2.services import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
memory.keep()
pieces = [libc.malloc(64 << 10) for _ in range(1000)]
for piece in pieces:
    ctypes.memset(piece, 1, 64 << 10)
for piece in pieces:
    libc.free(piece)
if sys.argv[1] == "back":
    memory.give_back()
    memory.give_back()  # at any time
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that is told")
def test_what_is_free_is_given_back() -> None:
    kept, given_back = output(RETURNS, "keep"), output(RETURNS, "back")
    assert kept - given_back > 40_000, "KiB of 64,000 that were free"
