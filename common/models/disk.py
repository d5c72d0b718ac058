"""Room on the disk, and how much of a download is there."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sps2.common.errors import Invalid
from sps2.common.models import Progress


def require_space(folder: Path, needed: int) -> None:
    """Check that the disk of `folder` has room for `needed` bytes. Raises Invalid if not."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Invalid(f"{needed >> 20} MiB are needed at {folder}, only {free >> 20} MiB are free")


@contextmanager
def watching(folder: Path, total: int, stage: str, progress: Progress) -> Iterator[None]:
    """Report the growth of a folder while the block runs, and completion after it."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            progress(stage, min(_size(folder), total), total)

    thread = threading.Thread(target=watch, daemon=True)
    progress(stage, 0, total)
    thread.start()
    try:
        yield
        progress(stage, total, total)
    finally:
        stop.set()
        thread.join()


def _size(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except FileNotFoundError:  # moved meanwhile
                continue
    return total
