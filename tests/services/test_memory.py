"""Freed memory is given back, or kept, as a process wants it."""

import subprocess
import sys

import pytest

from sps2.services.memory import give_back

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


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that is told")
def test_kept_memory_does_not_come_anew() -> None:
    def faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("keep") < 0.1 * faults("return")


def test_giving_back_may_be_called_at_any_time() -> None:
    give_back()
    give_back()
