"""What is fuzzed: a parser with its valid inputs, and the errors that it may answer with."""

import json
import random
from pathlib import Path
from types import TracebackType
from typing import Self

from sps2.common.errors import Invalid

from . import mutate

Pieces = list[bytes]
"""An input: the bytes of a file, or the messages of a connection, one after the other."""


class Target:
    """One parser. A subclass gives it valid inputs and feeds it changed ones.

    What `feed` raises that is not in `said` is a finding, and so is what the parser logs as an
    error meanwhile.

    Args:
        folder: for files of this target alone.
    """

    name = ""
    said: tuple[type[Exception], ...] = (Invalid,)
    """Errors that say in words what is wrong with an input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def case(self, dice: random.Random) -> Pieces:
        """The changed input of these dice."""
        raise NotImplementedError

    async def feed(self, pieces: Pieces) -> None:
        """Have the parser read an input."""
        raise NotImplementedError

    async def check(self) -> None:
        """Called now and then: raises AssertionError unless the parser still does its work."""


def changed_json(dice: random.Random, text: bytes) -> bytes:
    """A JSON text with changed values, or with changed bytes; of what is no JSON the latter."""
    if dice.random() < 0.4:
        return mutate.changed(dice, text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return mutate.changed(dice, text)
    changed = json.dumps(mutate.changed_value(dice, value)).encode()
    return spoilt(dice, changed) if dice.random() < 0.15 else changed


def spoilt(dice: random.Random, text: bytes) -> bytes:
    """A text with a value in it that no encoder writes."""
    numbers = [b"1" * 5000, b"1e999", b"-1e999", b"NaN", b"Infinity", b"0x10", b"1e-999", b"01"]
    strings = [b'"\\ud800"', b'"\xff"', b'"\\u0000"', b'"', mutate.deep(dice)]
    places = [place for place, byte in enumerate(text[:4000]) if byte in b"0123456789:[,"]
    if not places:
        return text + dice.choice(strings)
    place = dice.choice(places)
    return text[: place + 1] + dice.choice(numbers + strings) + text[place + 1 :]


def written(path: Path, data: bytes) -> Path:
    """The path, with these bytes in its file."""
    path.write_bytes(data)
    return path
