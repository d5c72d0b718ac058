"""Readers of one call, each of the form of a family of models."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from sps2.services.gateway.tools.events import Event

Functions = Mapping[str, Mapping[str, Any]]
"""The functions that may be called: the JSON schemas of their arguments, by name."""
State = Literal["open", "call", "refused", "ended"]


class Reader(Protocol):
    """Reads what may be a call, a character at a time.

    It is a call from when its name is that of a function and its arguments begin.
    """

    @property
    def state(self) -> State:
        """`open` while it is undecided; `call` from when it is a call; `ended` when a call is
        complete, or broken after its arguments began; `refused` when it is no call.
        """
        ...

    def take(self, character: str) -> tuple[bool, list[Event]]:
        """Add a character: whether it belongs to the call, and the events that it completes.

        A character with which it is refused, or that does not belong to it, is not consumed.
        """
        ...
