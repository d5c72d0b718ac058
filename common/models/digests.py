"""SHA-256 of large files, cached until a file changes."""

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from sps2.common import places
from sps2.common.models.file_lock import alone
from sps2.common.validation import MALFORMED

SETTLED_S = 2.0
"""A file that changed more recently than this may change again with the same time stamp."""

log = logging.getLogger(__name__)


class Seen(msgspec.Struct, frozen=True):
    """The state of a file when it was read; any change to the file changes a field."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    device: int


class Known(msgspec.Struct, frozen=True):
    seen: Seen
    digest: str


def of(paths: Sequence[Path]) -> list[str]:
    """The digests of the files, in hexadecimal.

    Digests are cached for all processes. The first time takes about a second per GB.

    Raises:
        OSError: a file cannot be read.
    """
    kept = places.cache() / "digests"
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _all(paths, None)
    name = hashlib.sha256(str(paths[0].absolute().parent).encode()).hexdigest()[:32]
    place = kept / f"{name}.json"
    try:
        with alone(place):
            return _all(paths, place)
    except OSError:  # the cache cannot be used; or the files cannot be read, which raises again
        return _all(paths, None)


def _all(paths: Sequence[Path], place: Path | None) -> list[str]:
    known = _read(place)
    with ThreadPoolExecutor(min(len(paths), os.cpu_count() or 1)) as pool:
        found = list(pool.map(lambda path: _of(path, known.get(str(path.absolute()))), paths))
    fresh = {
        str(path.absolute()): each
        for path, each in zip(paths, found, strict=True)
        if max(each.seen.modified_ns, each.seen.changed_ns) < time.time_ns() - SETTLED_S * 1e9
    }
    if place is not None and fresh != known:
        draft = place.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(fresh))
        draft.replace(place)
    return [each.digest for each in found]


def _read(place: Path | None) -> dict[str, Known]:
    try:
        return msgspec.json.decode(place.read_bytes(), type=dict[str, Known]) if place else {}
    except (FileNotFoundError, *MALFORMED):
        return {}


def _of(path: Path, known: Known | None) -> Known:
    with path.open("rb") as file:
        seen = _seen(file.fileno())
        if known is not None and known.seen == seen:
            return known
        if seen.size > 1 << 30:
            log.info("reading %s, to know it again: %.1f GB", path, seen.size / 1e9)
        return Known(seen, hashlib.file_digest(file, "sha256").hexdigest())


def _seen(file: int) -> Seen:
    found = os.fstat(file)
    return Seen(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)
