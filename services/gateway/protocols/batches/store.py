"""Keeps files of clients, within limits of size and time; they are lost with the process."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sps2.common.api.parsing import UNSUPPORTED
from sps2.common.errors import Invalid, Refused
from sps2.common.words import counted
from sps2.services.gateway.http.problems import TooLarge
from sps2.services.gateway.names import LONG, RANDOM, Names
from sps2.services.gateway.protocols.batches.folder import Folder
from sps2.services.gateway.protocols.batches.shapes import DAY_S, File, Purpose

KEPT_S = 2 * DAY_S
"""How long a file is kept, unless its client says otherwise."""
LEAST = 4096
"""Bytes that a file counts for at least: so there are not too many of them."""
SHARE = 4
"""One file has at most this part of the room."""
OWN_SHARE = 2
"""All files of one API key have at most this part of the room."""


class Stored(NamedTuple):
    """A file that is kept."""

    file: File
    owner: str
    path: Path

    @property
    def cost(self) -> int:
        """Bytes of room that it takes."""
        return max(LEAST, self.file.bytes)


class Store:
    """The files of all clients, in a temporary folder.

    A client is the name of an API key, or empty where there are none; it sees its own files alone.

    Args:
        max_bytes: of all files together.
        now: seconds since the epoch.
        names: makes the names in the ids of files and batches.
    """

    def __init__(
        self, max_bytes: int, now: Callable[[], float] = time.time, names: Names = RANDOM
    ) -> None:
        self.most = max_bytes // SHARE
        self.now = now
        self.names = names
        self._max_bytes = max_bytes
        self._folder: Folder | None = None
        self._files: dict[str, Stored] = {}
        self._used: Counter[str] = Counter()

    def writer(self, owner: str) -> "Writer":
        """A new file, to be written.

        Raises:
            Invalid: no files are kept here.
        """
        if not self._max_bytes:
            raise Invalid(
                "this gateway keeps no files: set `files_bytes` of [gateway]", None, UNSUPPORTED
            )
        if self._folder is None:
            self._folder = Folder()
        name = f"file-{self.names(LONG)}"
        return Writer(self, owner, name, self._folder.path / name)

    def get(self, name: str, owner: str) -> Stored:
        """A file by its id. Raises Invalid if this client has none of that name."""
        self._sweep()
        stored = self._files.get(name)
        if stored is None or stored.owner != owner:
            raise Invalid(f"there is no file {name[:80]!r}", "file_id", "file_not_found")
        return stored

    def files(self, owner: str) -> list[File]:
        """The files of a client, the newest first."""
        self._sweep()
        return [each.file for each in reversed(self._files.values()) if each.owner == owner]

    def count(self) -> int:
        """How many files of all clients are kept."""
        self._sweep()
        return len(self._files)

    def delete(self, name: str, owner: str) -> None:
        """Remove a file; who reads it can go on. Raises Invalid as `get` does."""
        self.get(name, owner)
        self._drop(name)

    def close(self) -> None:
        """Remove all files."""
        if self._folder is not None:
            self._folder.remove()

    def claim(self, writer: "Writer", size: int) -> None:
        """Take room for a file that is written and may get `size` bytes.

        Raises:
            TooLarge: no file may.
            Refused: there is no room for it beside the others.
        """
        if size > self.most:
            raise TooLarge(f"a file may have {self.most} bytes at most (gateway.files_bytes)")
        more = max(LEAST, size) - writer.cost
        if more <= 0:
            return
        if self._used.total() + more > self._max_bytes:
            self._sweep()
        if self._used.total() + more > self._max_bytes:
            whose = f"files fill the {counted(self._max_bytes, 'byte')} that are for them"
        elif writer.owner and self._used[writer.owner] + more > self._max_bytes // OWN_SHARE:
            whose = "your files fill the half of the room that one API key may have"
        else:
            self.account(writer, more)
            return
        raise Refused(f"{whose}: delete some of them, or try again later")

    def account(self, writer: "Writer", more: int) -> None:
        """A file that is written takes more room, or less."""
        writer.cost += more
        self._used[writer.owner] += more

    def add(self, stored: Stored) -> None:
        """Keep a file that was written."""
        self._files[stored.file.id] = stored

    def _sweep(self) -> None:
        now_s = self.now()
        for name in [each for each, kept in self._files.items() if kept.file.expires_at <= now_s]:
            self._drop(name)

    def _drop(self, name: str) -> None:
        stored = self._files.pop(name)
        self._used[stored.owner] -= stored.cost
        stored.path.unlink(missing_ok=True)


class Writer:
    """A file in the making.

    Attributes:
        size: bytes written so far.
        cost: bytes of the store's room that it takes.
    """

    def __init__(self, store: Store, owner: str, name: str, path: Path) -> None:
        self.owner = owner
        self.size = 0
        self.cost = 0
        self._store = store
        self._name = name
        self._path = path
        self._file: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        """Add bytes. Raises as `Store.claim` does."""
        self._store.claim(self, self.size + len(data))
        self._file = self._file or self._path.open("wb")
        self._file.write(data)
        self.size += len(data)

    def keep(self, filename: str, purpose: Purpose, seconds: int | None = None) -> File:
        """Close the file and keep it.

        Args:
            seconds: how long it is kept.
        """
        self.write(b"")
        self._close()
        now_s = int(self._store.now())
        file = File(
            id=self._name,
            bytes=self.size,
            created_at=now_s,
            expires_at=now_s + (seconds or KEPT_S),
            filename=filename,
            purpose=purpose,
        )
        stored = Stored(file, self.owner, self._path)
        self._store.account(self, stored.cost - self.cost)
        self._store.add(stored)
        return file

    def drop(self) -> None:
        """Give the file up."""
        self._close()
        self._path.unlink(missing_ok=True)
        self._store.account(self, -self.cost)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()


def page(names: Iterable[str], after: str | None, limit: int) -> tuple[list[str], bool]:
    """The names behind `after`, at most `limit`; and whether there are more."""
    listed = list(names)
    if after is not None:
        if after not in listed:
            raise Invalid(f"there is no {after[:80]!r}", "after", "invalid_value")
        listed = listed[listed.index(after) + 1 :]
    return listed[:limit], len(listed) > limit
