"""Log-probabilities of a plain answer, encoded as JSON as they come.

An answer can have millions of them. If they were kept as objects, encoding all at the end would
block every other request, and the garbage collector would visit each of them again and again.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw

from sps2.common.messages import Struct


class Written:
    """The log-probabilities of one choice, of either API: a Struct of lists that grow together."""

    def __init__(self) -> None:
        self._parts: dict[str, list[bytes]] = {}
        self._others: dict[str, object] = {}

    def add(self, logprobs: Struct) -> None:
        for name in logprobs.__struct_fields__:
            value = getattr(logprobs, name)
            if not isinstance(value, list):
                self._others[name] = value
                continue
            parts = self._parts.setdefault(name, [])
            if value:
                parts.append(msgspec.json.encode(value)[1:-1])

    def whole(self) -> Any:
        """All of them, as a raw part of a larger JSON text."""
        lists = {name: Raw(_list(parts)) for name, parts in self._parts.items()}
        return Raw(msgspec.json.encode(lists | self._others))


def _list(parts: Sequence[bytes]) -> bytes:
    return b"".join((b"[", b",".join(parts), b"]"))
