"""Reads a call that is a JSON object: `{"name": ..., "arguments": {...}}`, in any order."""

import json
from typing import Literal

from sps2.common.validation import MALFORMED
from sps2.services.gateway.tools.events import Arguments, Called, Event
from sps2.services.gateway.tools.json_value import SPACE, JsonValue
from sps2.services.gateway.tools.reader import Functions, State

ARGUMENTS = ("arguments", "parameters")
MOST_HELD = 1 << 16
"""Characters of an object that may come before it is clear whether it is a call."""


class CallObject:
    """A `Reader` of an object. Arguments are passed on as they come, whatever they are.

    Args:
        needs_arguments: whether an object without arguments is no call.
    """

    def __init__(self, functions: Functions, needs_arguments: bool) -> None:
        self.state: State = "open"
        self._functions = functions
        self._needs_arguments = needs_arguments
        self._expects: Literal["{", "first", "key", ":", "value", ","] = "{"
        self._key: object = ""
        self._value = JsonValue()
        self._name: str | None = None
        self._waiting: str | None = None
        """Arguments that came before the name."""
        self._streams = False
        """Whether the value that is read is arguments that are passed on."""
        self._taken = 0

    def take(self, character: str) -> tuple[bool, list[Event]]:
        """See `Reader`."""
        self._taken += 1
        if self.state == "open" and self._taken > MOST_HELD:
            return self._break()
        if self._value.kind:
            return self._read(character)
        if character in SPACE:
            return True, []
        match self._expects, character:
            case "{", "{":
                self._expects = "first"
            case "first" | "key", '"':
                return self._read(character)
            case ":", ":":
                self._expects = "value"
            case "value", _ if character not in ",:}]":
                return self._read(character)
            case ",", ",":
                self._expects = "key"
            case "first" | ",", "}":
                return self._finish()
            case _:
                return self._break()
        return True, []

    def _read(self, character: str) -> tuple[bool, list[Event]]:
        """Read a key or a value."""
        value, is_key = self._value, self._expects != "value"
        if value.kind == '"' and character in "\r\n":
            return self._break()
        begins = not value.kind
        belongs = value.take(character)
        events: list[Event] = []
        if not is_key and self._key in ARGUMENTS and belongs:
            events = self._pass_on(character, begins)
        if value.ended:
            self._value = JsonValue()
            if is_key:
                self._expects, self._key = ":", _plain(value)
                return True, events
            self._expects = ","
            if not self._heed(value, events):
                return self._break()
            if not belongs:
                mine, more = self.take(character)
                return mine, events + more
        return True, events

    def _pass_on(self, character: str, begins: bool) -> list[Event]:
        """A character of the arguments, perhaps their first, if it is known whose they are."""
        if self._streams:
            return [Arguments(character)]
        if not begins or character != "{" or self._name is None or self.state != "open":
            return []
        self.state, self._streams = "call", True
        return [Called(self._name), Arguments(character)]

    def _heed(self, value: JsonValue, events: list[Event]) -> bool:
        """Heed a member of the object that is complete; false if the object is no call."""
        if self._streams or self.state == "call":
            self._streams = False
            return True
        if self._key == "name" and self._name is None:
            name = _plain(value)
            if not isinstance(name, str) or name not in self._functions:
                return False
            self._name = name
        elif self._key in ARGUMENTS and self._waiting is None:
            self._waiting = _object_in(value)
            if self._waiting is None:
                return False
        if self._name is not None and self._waiting is not None:
            self.state = "call"
            events += [Called(self._name), Arguments(self._waiting)]
        return True

    def _finish(self) -> tuple[bool, list[Event]]:
        """The object's `}`."""
        if self.state == "call":
            self.state = "ended"
            return True, []
        if self._name is None or self._needs_arguments:
            return self._break()
        self.state = "ended"
        return True, [Called(self._name), Arguments("{}")]

    def _break(self) -> tuple[bool, list[Event]]:
        self.state = "ended" if self.state == "call" else "refused"
        return False, []


def _plain(value: JsonValue) -> object:
    """A key or a name; None if it has escapes, which grammars of calls do not look for."""
    return None if "\\" in value.text else loaded(value.text)


def loaded(text: str) -> object:
    """The value of a JSON text; None if it is none."""
    try:
        return json.loads(text)
    except MALFORMED:
        return None


def _object_in(value: JsonValue) -> str | None:
    """Arguments as an object's text: as written, quoted once more, or null; None if neither."""
    if value.kind == "{":
        return value.text
    if value.text == "null":
        return "{}"
    text = loaded(value.text)
    return text if isinstance(text, str) and isinstance(loaded(text), dict) else None
