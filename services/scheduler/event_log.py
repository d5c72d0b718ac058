"""The log of a core's events, from which its decisions can be replayed."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from typing import Any

import msgspec

from sps2.common.config import Scheduler
from sps2.common.errors import Refused, ServiceError
from sps2.common.messages import Record, Recorded
from sps2.common.messages.schema import hash_of
from sps2.services.scheduler.actions import Action
from sps2.services.scheduler.core import Core
from sps2.services.scheduler.core_state import CoreState
from sps2.services.scheduler.events import Event, Joined
from sps2.services.scheduler.schemes import Inputs, Schemes
from sps2.services.scheduler.shard_secrets import without_tokens

CHUNK = 4096
"""Events between two states of the core that are kept; at least this many are remembered."""
BATCH = 256
"""Lines of a recording in one message."""
BACKLOG = 65536
"""Lines that wait for a reader; then its recording ends."""


class Header(msgspec.Struct, frozen=True):
    """The first line of a recording: what decisions depend on besides the events that follow.

    schema: a hash of the types of a recording. earlier: how many events came before.
    """

    schema: str
    version: str
    settings: Scheduler
    schemes: Inputs
    earlier: int
    state: CoreState


class Entry(msgspec.Struct, frozen=True):
    """An event at a time of the scheduler's clock, in seconds, and the actions that followed."""

    at_s: float
    event: Event
    actions: tuple[Action, ...]


class EventLog:
    """Passes events to a core, and remembers the recent ones with the state before them.

    A recording is text: a line of JSON for its header, then one for each entry. It has no tokens of
    prompts or answers, and no secrets.

    Args:
        settings, schemes: of the core's policy.
    """

    def __init__(self, core: Core, settings: Scheduler, schemes: Schemes) -> None:
        self._core = core
        self._settings = settings
        self._schemes = schemes
        self._handled = 0
        self._chunks = deque([(self._header(), list[Entry]())], 2)
        self._readers: set[asyncio.Queue[bytes]] = set()

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Have the core handle an event, and remember it."""
        actions = self._core.handle(event, now_s)
        entry = Entry(now_s, event, tuple(actions))
        self._handled += 1
        self._chunks[-1][1].append(entry)
        for reader in [*self._readers]:
            if reader.full():
                self._readers.discard(reader)
            else:
                reader.put_nowait(line_of(entry))
        if len(self._chunks[-1][1]) >= CHUNK:
            self._chunks.append((self._header(), []))
        return actions

    def lines(self) -> Iterator[bytes]:
        """The recording of the recent events."""
        chunks = [(header, list(entries)) for header, entries in self._chunks]
        yield chunks[0][0]
        for _, entries in chunks:
            yield from map(line_of, entries)

    async def record(self, request: Record) -> AsyncIterator[Recorded]:
        """Send the recent events and, if the request says so, each that follows.

        Raises:
            Refused: the reader is too slow.
        """
        reader = asyncio.Queue[bytes](BACKLOG)
        recent = list(self.lines())
        if request.follow:
            self._readers.add(reader)
        try:
            for first in range(0, len(recent), BATCH):
                yield Recorded(tuple(recent[first : first + BATCH]))
            while request.follow:
                if reader.empty() and reader not in self._readers:
                    raise Refused("the recording was read too slowly; record to a faster disk")
                lines = [await reader.get()]
                while len(lines) < BATCH and not reader.empty():
                    lines.append(reader.get_nowait())
                yield Recorded(tuple(lines))
        finally:
            self._readers.discard(reader)

    def _header(self) -> bytes:
        return encoded(
            Header(
                schema(),
                version("sps2"),
                self._settings,
                self._schemes.inputs,
                self._handled,
                self._core.state(),
            )
        )


def line_of(entry: Entry) -> bytes:
    """An entry of a recording, without the secrets of shards."""
    if isinstance(entry.event, Joined):
        joined = Joined(without_tokens(entry.event.shard), entry.event.draining)
        entry = Entry(entry.at_s, joined, entry.actions)
    return encoded(entry)


def encoded(what: object) -> bytes:
    """One line of JSON, without its end."""
    return msgspec.json.encode(what, enc_hook=_from_error)


def schema() -> str:
    """A hash of the types of a recording."""
    return hash_of([Header, Entry])


def _from_error(value: Any) -> Any:
    if isinstance(value, ServiceError):
        return [type(value).__name__, *value.args]
    raise NotImplementedError(f"{type(value).__name__} cannot be recorded")
