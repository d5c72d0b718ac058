"""Reads a call in tags: `<function=NAME><parameter=NAME>value</parameter></function>`."""

import json
import re
from collections.abc import Mapping
from typing import Any

from sps2.services.gateway.tools.call_object import loaded
from sps2.services.gateway.tools.events import Arguments, Called, Event, Text
from sps2.services.gateway.tools.reader import Functions, State

_NAME = re.compile(r"<function=([^>\s]{1,64})>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\s]{1,256})>")
_END = re.compile(r"\s*</(function|tool_call)>")
_STOP = "</parameter>"
MOST_HEAD = 512
"""Characters of a tag, and space before it."""


class TaggedCall:
    """A `Reader` from the `<` of `<function=` on.

    A value is passed on when it is complete: as JSON where the function's schema does not say that
    it is text, if it is JSON.
    """

    def __init__(self, functions: Functions) -> None:
        self.state: State = "open"
        self._functions = functions
        self._name = ""
        self._parameter: str | None = None
        self._held = ""
        self._value: list[str] = []
        self._count = 0

    def take(self, character: str) -> tuple[bool, list[Event]]:
        """See `Reader`."""
        if self._parameter is not None:
            return True, self._read(character)
        self._held += character
        if not self._name:
            return self._begin()
        if found := _PARAMETER.fullmatch(self._held):
            self._parameter, self._held = found[1], ""
            return True, []
        if _END.fullmatch(self._held):
            self.state = "ended"
            return True, [self._brace()]
        if self._may_go_on():
            return True, []
        self.state = "ended"
        return False, [self._brace(), Text(self._held[:-1])]

    def _brace(self) -> Arguments:
        return Arguments("}" if self._count else "{}")

    def _begin(self) -> tuple[bool, list[Event]]:
        found = _NAME.fullmatch(self._held)
        if found and found[1] in self._functions:
            self.state, self._name, self._held = "call", found[1], ""
            return True, [Called(found[1])]
        opening = "<function="
        rest = self._held.removeprefix(opening)
        is_name = self._held.startswith(opening) and any(
            name.startswith(rest) for name in self._functions
        )
        if is_name or opening.startswith(self._held):
            return True, []
        self.state = "refused"
        return False, []

    def _may_go_on(self) -> bool:
        held = self._held.lstrip()
        if len(self._held) > MOST_HEAD:
            return False
        opening = "<parameter="
        ends = (opening, "</function>", "</tool_call>")
        return any(each.startswith(held) for each in ends) or bool(
            held.startswith(opening) and re.fullmatch(r"[^>\s]*", held.removeprefix(opening))
        )

    def _read(self, character: str) -> list[Event]:
        """A character of a value, or of its end."""
        self._value.append(character)
        if character != ">" or "".join(self._value[-len(_STOP) :]) != _STOP:
            return []
        text = "".join(self._value[: -len(_STOP)]).removeprefix("\n").removesuffix("\n")
        member = f"{json.dumps(self._parameter)}: {_value(text, self._schema())}"
        self._parameter = None
        self._value.clear()
        self._count += 1
        return [Arguments(f"{'{' if self._count == 1 else ', '}{member}")]

    def _schema(self) -> Mapping[str, Any]:
        properties = self._functions[self._name].get("properties")
        schema = properties.get(self._parameter) if isinstance(properties, Mapping) else None
        return schema if isinstance(schema, Mapping) else {}


def _value(text: str, schema: Mapping[str, Any]) -> str:
    """A value as JSON."""
    if schema.get("type") == "string" or (loaded(text) is None and text.strip() != "null"):
        return json.dumps(text, ensure_ascii=False)
    return text.strip()
