"""File locks: one process at a time works on a path, others wait and then find it done."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, a hidden file beside it, within the block. Waits for it, blocking.

    The file exists as long as a process holds the lock.
    """
    place = path.parent / f".{path.name}.lock"
    while True:
        with place.open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_at(lock, place):
                continue  # the previous holder has removed it; another may have made a new one
            try:
                yield
            finally:
                place.unlink(missing_ok=True)
            return


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """As `alone`, for the content of a folder, which is locked itself. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def locked(file: IO[Any]) -> bool:
    """Lock an open file for this process, without waiting; False if another has it locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: IO[str], place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False
