"""A folder of KV pages: files by page hash, at most so many bytes, the least recently used go."""

import fcntl
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from sps2.common.errors import Invalid
from sps2.common.page_hashes import HASH_BYTES
from sps2.services.decode.kv.page_file import HEADER_BYTES, Damaged, PageFormat

log = logging.getLogger(__name__)

SUFFIX, DRAFT = ".kv", ".new"
PINS = "pinned"
"""The file that lists the pinned pages, a hash on each line."""
PINNED_SHARE = 0.5
"""Of the bytes of a folder that pinned pages may take."""
ROOM = 0.95
"""When the folder is full, files are deleted down to this share of its bound."""

Fault = Literal["damaged", "unreadable", "unwritable"]


class PageStore:
    """The page files of one process; all methods may be called from any thread.

    A disk that fails costs nothing but the pages: every error is counted and, the first time,
    logged. The order of use survives in the files' times of modification. Pages that are *pinned*
    stay, however long they are not used.

    Args:
        folder: of this process alone; made if it is missing.
        most_bytes: of all files together.

    Raises:
        Invalid: another process has locked the folder.
        OSError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path, form: PageFormat, most_bytes: int) -> None:
        self._folder = folder
        self._form = form
        self._most = most_bytes
        self._guard = threading.Lock()
        self._used_ns: dict[bytes, int] = {}
        """When each page was used last, in nanoseconds since 1970."""
        self._changes: dict[bytes, bool] = {}
        """Pages that came (true) or went since the last report."""
        self._pinned: dict[bytes, None] = {}
        """Whether they are here already or not."""
        self._logged: set[str] = set()
        self.counters: Counter[str] = Counter()
        """Bytes `written` and `read`, pages that were found (`hits`), and faults by name."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock: int | None = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._take_lock(self._lock)
            self._list()
            self._pinned = self._pins()
        except BaseException:
            self.close()
            raise
        self._shrink()

    def close(self) -> None:
        """Give the folder free for another process; it may be called again."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def __contains__(self, page_hash: bytes) -> bool:
        return page_hash in self._used_ns

    @property
    def pages(self) -> int:
        return len(self._used_ns)

    @property
    def nbytes(self) -> int:
        return len(self._used_ns) * self._form.file_bytes

    def hashes(self) -> tuple[bytes, ...]:
        with self._guard:
            return tuple(self._used_ns)

    @property
    def most_pinned(self) -> int:
        """How many pages may be pinned."""
        return int(self._most * PINNED_SHARE) // self._form.file_bytes

    def pinned(self) -> tuple[bytes, ...]:
        """The pages that are pinned, some of which may not be here."""
        with self._guard:
            return tuple(self._pinned)

    def pin(self, pins: Mapping[bytes, bool]) -> None:
        """Pin pages (true) or unpin them; whoever asks heeds `most_pinned`."""
        with self._guard:
            for page_hash, keep in pins.items():
                if keep:
                    self._pinned[page_hash] = None
                else:
                    self._pinned.pop(page_hash, None)
            lines = "".join(f"{page_hash.hex()}\n" for page_hash in self._pinned)
        draft = self._folder / (PINS + DRAFT)
        try:
            draft.touch(0o600)
            draft.write_text(lines, "ascii")
            draft.replace(self._folder / PINS)
        except OSError as error:
            self._note("unwritable", "cannot keep the pins of %s: %s", self._folder, error)

    def changes(self) -> dict[bytes, bool]:
        """Pages that came (true) or went, and are not `reported` yet."""
        with self._guard:
            return dict(self._changes)

    def reported(self, changes: Iterable[tuple[bytes, bool]]) -> None:
        """These changes are known; what has changed again since then is not."""
        with self._guard:
            for page_hash, came in changes:
                if self._changes.get(page_hash) is came:
                    del self._changes[page_hash]

    def write(self, page_hash: bytes, payload: Any, used_ns: int) -> None:
        """Keep a page; returns without it where that fails.

        Args:
            payload: a buffer of the format's `payload_bytes`.
            used_ns: when it was used last; see `used_at`.
        """
        place = self._place(page_hash)
        draft = place.with_suffix(DRAFT)
        try:
            draft.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb", buffering=0) as file:
                _write_all(file, self._form.header(page_hash, payload))
                _write_all(file, payload)
            os.utime(draft, ns=(used_ns, used_ns))
            draft.replace(place)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            self._note("unwritable", "cannot keep KV pages in %s: %s", self._folder, error)
            return
        with self._guard:
            self._used_ns[page_hash] = used_ns
            self._changes[page_hash] = True
            self.counters["written"] += self._form.payload_bytes
        self._shrink()

    def read(self, page_hash: bytes) -> bytearray | None:
        """The payload of a page; None, and the file is deleted, if it cannot be used."""
        payload = bytearray(self._form.payload_bytes)
        try:
            with self._place(page_hash).open("rb", buffering=0) as file:
                header = file.read(HEADER_BYTES)
                view, size = memoryview(payload), 0
                while size < len(view) and (count := file.readinto(view[size:])):
                    size += count
                if file.read(1):
                    raise Damaged("it is too long")
            self._form.check(page_hash, header, view[:size])
        except FileNotFoundError:
            self.lose([page_hash])
            return None
        except (OSError, Damaged) as error:
            fault: Fault = "damaged" if isinstance(error, Damaged) else "unreadable"
            self._note(fault, "cannot use %s: %s", self._place(page_hash), error)
            self.lose([page_hash])
            return None
        with self._guard:
            self.counters["read"] += self._form.payload_bytes
            self.counters["hits"] += 1
        return payload

    def use(self, hashes: Sequence[bytes]) -> None:
        """A prompt's pages, from its first on, are used now: of these the last is deleted first."""
        now_ns = time.time_ns()
        for number, page_hash in enumerate(hashes):
            with self._guard:
                if page_hash not in self._used_ns:
                    continue
                used_ns = self._used_ns[page_hash] = used_at(now_ns, number)
            with suppress(OSError):  # as on a disk that can only be read
                os.utime(self._place(page_hash), ns=(used_ns, used_ns))

    def lose(self, hashes: Iterable[bytes]) -> None:
        """Delete pages; each is reported as gone, even if it was not here."""
        for page_hash in hashes:
            with self._guard:
                self._used_ns.pop(page_hash, None)
                self._changes[page_hash] = False
            with suppress(OSError):
                self._place(page_hash).unlink(missing_ok=True)

    def erase(self, unused_s: float) -> int:
        """Delete the pages that were not used for so many seconds, and are not pinned.

        Returns:
            How many.
        """
        before_ns = time.time_ns() - int(unused_s * 1e9)
        with self._guard:
            old = [
                each
                for each, used_ns in self._used_ns.items()
                if used_ns <= before_ns and each not in self._pinned
            ]
        self.lose(old)
        return len(old)

    def _take_lock(self, folder: int) -> None:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Invalid(
                f"another cluster keeps its KV pages in {self._folder}: stop it, or set another "
                "kv.disk_folder (--kv-disk)",
                "kv.disk_folder",
            ) from None

    def _list(self) -> None:
        """Find the pages that are here, oldest first; delete what a crash has left."""
        found = []
        for folder in os.scandir(self._folder):
            for file in os.scandir(folder.path) if folder.is_dir() else ():
                page_hash = _hash_of(file.name)
                if page_hash is None:
                    if file.name.endswith(DRAFT):
                        with suppress(OSError):
                            os.unlink(file.path)
                    continue
                try:
                    about = file.stat()
                    if about.st_size != self._form.file_bytes:
                        raise Damaged("its size is wrong")
                except (OSError, Damaged) as error:  # as of a link that leads nowhere
                    self._note("damaged", "cannot use %s: %s", file.path, error)
                    with suppress(OSError):
                        os.unlink(file.path)
                else:
                    found.append((about.st_mtime_ns, page_hash))
        self._used_ns = {page_hash: used_ns for used_ns, page_hash in sorted(found)}

    def _pins(self) -> dict[bytes, None]:
        """The pages that are pinned; no more than may be, if the folder has less room now."""
        try:
            lines = (self._folder / PINS).read_text("ascii").splitlines()
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self._note("unreadable", "cannot read the pins of %s: %s", self._folder, error)
            return {}
        hashes = [page_hash for line in lines if (page_hash := _hash_of(line + SUFFIX))]
        if len(hashes) > self.most_pinned:
            log.warning(
                "%s has room for %d of its %d pinned KV pages; the others are not pinned any more",
                self._folder,
                self.most_pinned,
                len(hashes),
            )
        return dict.fromkeys(hashes[: self.most_pinned])

    def _shrink(self) -> None:
        """Delete the least recently used pages that are not pinned, if there are too many."""
        with self._guard:
            if self.nbytes <= self._most:
                return
            most = int(self._most * ROOM) // self._form.file_bytes
            by_use = sorted(self._used_ns.keys() - self._pinned, key=self._used_ns.__getitem__)
            old = by_use[: max(0, len(self._used_ns) - most)]
        self.lose(old)

    def _place(self, page_hash: bytes) -> Path:
        name = page_hash.hex()
        return self._folder / name[:2] / (name + SUFFIX)

    def _note(self, fault: Fault, message: str, *arguments: object) -> None:
        with self._guard:
            self.counters[fault] += 1
        if fault not in self._logged:
            self._logged.add(fault)
            log.warning(f"{message}; requests compute what is missing", *arguments)


def used_at(now_ns: int, number: int) -> int:
    """When a page of a prompt counts as used, in nanoseconds: pages before it are of use without
    it, so they count as used later.

    Args:
        now_ns: since 1970, the same for all pages of the prompt.
        number: of the page in the prompt.
    """
    return now_ns - 1000 * number


def _write_all(file: Any, content: Any) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _hash_of(name: str) -> bytes | None:
    """The page hash of a file's name; None if it is no page's."""
    with suppress(ValueError):
        if name.endswith(SUFFIX) and len(name) == 2 * HASH_BYTES + len(SUFFIX):
            return bytes.fromhex(name.removesuffix(SUFFIX))
    return None
