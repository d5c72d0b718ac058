"""A private JSON file whose changes take effect while the process runs."""

import logging
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from sps2.common.errors import Invalid
from sps2.common.keys import read_private
from sps2.common.validation import MALFORMED

T = TypeVar("T")

log = logging.getLogger(__name__)


class Reloaded(Generic[T]):
    """The current content of a file. If it becomes unreadable, that is logged and the last good
    content stays in effect.

    Args:
        kind: type of the content.
        empty: the content if there is no file.

    Raises:
        Invalid: the file is malformed at first, or others may read it.
    """

    def __init__(self, path: Path, kind: type[T], empty: T) -> None:
        self.path = path
        self._kind = kind
        self._empty = empty
        self._seen = self._look()
        self._value = self._read()

    def now(self) -> T:
        """The content; costs one `stat` if nothing has changed."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._value = self._read()
                log.info("%s was read again", self.path)
            except Invalid as error:
                log.error("%s; what it said before stands", error)
        return self._value

    def _look(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino

    def _read(self) -> T:
        try:
            return msgspec.json.decode(read_private(self.path), type=self._kind)
        except FileNotFoundError:
            return self._empty
        except MALFORMED as error:
            raise Invalid(f"{self.path} is malformed: {error}") from error
