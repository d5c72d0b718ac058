"""Replays a recording of the scheduler's events."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sps2.common import errors
from sps2.common.errors import Invalid, ServiceError
from sps2.common.validation import MALFORMED
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.event_log import Entry, Header, encoded, schema
from sps2.services.scheduler.fleet import Fleet
from sps2.services.scheduler.policies import POLICIES
from sps2.services.scheduler.schemes import Schemes

Line = TypeVar("Line")
ERRORS = ("Invalid", "Refused", "PeerLost", "Preempted", "Cancelled", "Internal", "Unsound")


class Recording:
    """A header and the entries that follow.

    Args:
        lines: of a recording. name: where they are from.

    Raises:
        Invalid: they are no recording, are damaged, or were made by another version.
    """

    def __init__(self, lines: Iterable[bytes], name: str) -> None:
        self.name = name
        self.entries: list[Entry] = []
        self._numbers: list[int] = []
        """The line of each entry."""
        self._first = b""
        header: Header | None = None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                if header is None:
                    self._first, header = line, _header(line, name)
                else:
                    self.entries.append(_decoded(line, Entry))
                    self._numbers.append(number)
            except MALFORMED as error:
                raise Invalid(
                    f"{name}, line {number}: not a recording of `spsctl scheduler record`: {error}"
                ) from error
        if header is None:
            raise Invalid(f"{name} is empty; record again with `spsctl scheduler record`")
        self.header = header

    @classmethod
    def read(cls, path: Path) -> "Recording":
        """Raises OSError, and Invalid as the constructor."""
        with path.open("rb") as file:
            return cls(file, str(path))

    def core(self) -> Core:
        """A core in the state before the first entry."""
        header = _decoded(self._first, Header)  # the core takes its state over, and changes it
        settings = header.settings
        try:
            policy = POLICIES[settings.policy](settings, Schemes(*header.schemes))
            core = Core(policy, Fleet(), settings.max_queue, settings.patience_s)
            core.restore(header.state)
        except Exception as error:
            raise Invalid(f"{self.name}: its first line is damaged: {error!r}") from error
        return core

    def replay(self, core: Core) -> Iterator[Entry]:
        """Handle every event again; yields each entry before that.

        Args:
            core: as `core` makes it, perhaps with an observer.

        Raises:
            Invalid: actions follow that are not the recorded ones.
        """
        for number, entry in zip(self._numbers, self.entries, strict=True):
            yield entry
            try:
                now = encoded(core.handle(entry.event, entry.at_s))
            except Exception as error:
                raise Invalid(
                    f"{self.name}, line {number}: this event cannot follow the lines before it: "
                    f"{error!r}; lines are missing, or in another order"
                ) from error
            if now != (recorded := encoded(entry.actions)):
                raise Invalid(
                    f"{self.name}, line {number}: the scheduler decides otherwise now.\n"
                    f"recorded: {recorded.decode()}\nnow:      {now.decode()}"
                )


def _header(line: bytes, name: str) -> Header:
    found = msgspec.json.decode(line, type=dict[str, Any])
    if found.get("schema") != schema():
        by = ascii(found.get("version", "another program"))[:40]
        raise Invalid(f"{name} was recorded by {by}, whose events are different: replay it there")
    return _decoded(line, Header)


def _decoded(line: bytes, kind: type[Line]) -> Line:
    return msgspec.json.decode(line, type=kind, dec_hook=_to_error)


def _to_error(kind: type, value: Any) -> Any:
    if kind is ServiceError and isinstance(value, list) and value and value[0] in ERRORS:
        return getattr(errors, value[0])(*value[1:])
    raise ValueError(f"{str(value)[:80]!r} is not an error that services have")
