"""One process at a time does a piece of work on a path; others wait, then find it done."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, a hidden file beside it, while the block runs; blocks for it.

    The file is there for as long as somebody holds it.
    """
    place = path.parent / f".{path.name}.lock"
    while True:
        with place.open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_at(lock, place):
                continue  # the holder before has removed it; another may have made a new one
            try:
                yield
            finally:
                place.unlink(missing_ok=True)
            return


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The same for what is in a folder, whose own lock it is. Raises OSError if there is none."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_at(file: IO[str], place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False
