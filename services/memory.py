"""What the C library does with freed memory, and when the system gives memory for what comes."""

import ctypes
import mmap
from collections.abc import Iterable

from sps2.common.machine import glibc

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
UNLIMITED = 2**31 - 1
MOST_MMAP_THRESHOLD = 32 << 20
"""What glibc takes: larger pieces it maps on their own, always."""
MADV_POPULATE_WRITE = 23
"""Of Linux 5.14."""


def give_back() -> None:
    """Have glibc return what is free (on SmolLM2: 110 MB to 85 MB after start, in some ms)."""
    if trim := glibc("malloc_trim"):
        trim(0)


def keep() -> None:
    """Have glibc keep from now on what is freed, in pieces up to 32 MiB, instead of returning it.

    Tensors of a layer are of the same few sizes again and again. Memory that the system takes back
    between them comes again as pages full of zeros: a tenth of the time of a prefill.
    """
    if tune := glibc("mallopt"):
        tune(M_MMAP_THRESHOLD, MOST_MMAP_THRESHOLD)
        tune(M_TRIM_THRESHOLD, UNLIMITED)


def back(pieces: Iterable[tuple[int, int]]) -> None:
    """Have the system give memory to what will be written, where it can do so ahead.

    What lies there stays as it is, and other threads may write to it meanwhile. The first write to
    memory that has none yet costs more than the copy: 47 MB of KV took 17 to 170 ms longer.

    Args:
        pieces: (address, bytes) of each.
    """
    if advise := glibc("madvise"):
        for address, nbytes in pieces:
            start = address // mmap.PAGESIZE * mmap.PAGESIZE
            size = ctypes.c_size_t(address + nbytes - start)
            if advise(ctypes.c_void_p(start), size, MADV_POPULATE_WRITE):
                return
