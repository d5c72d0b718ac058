"""The temporary folder of a gateway's files, which does not outlive it for long.

A gateway that is killed removes nothing: the next one that starts on this machine does it.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "sps2-gateway-"


class Folder:
    """A new folder that only this user can read.

    Its process holds a lock on it, which ends with the process, however that ends.

    Attributes:
        path: of the folder.
    """

    def __init__(self) -> None:
        self.path, self._lock = _made()

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_leftovers() -> None:
    """Remove this user's folders whose processes have ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if (lock := _locked(path)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _made() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        if (lock := _locked(path)) is not None:  # else another process took it for a leftover
            return path, lock


def _locked(path: Path) -> int | None:
    """A descriptor with the lock of a folder; None if another process has it, if it is another
    user's, or is gone."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_uid == os.getuid() and path.exists():
            return lock
    except OSError:
        pass
    os.close(lock)
    return None
