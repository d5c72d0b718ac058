"""Finds where a JSON value ends, a character at a time."""

from typing import Literal

SPACE = " \t\r\n"


class JsonValue:
    """One value; objects and lists are only checked for balanced brackets.

    Attributes:
        kind: of its first character: `{`, `[` or `"`; `x` for numbers and words; empty before it.
        ended: whether the value is complete.
    """

    def __init__(self) -> None:
        self.kind: Literal["", "{", "[", '"', "x"] = ""
        self.ended = False
        self._parts: list[str] = []
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    @property
    def text(self) -> str:
        """The value so far, as it is written."""
        return "".join(self._parts)

    def take(self, character: str) -> bool:
        """Add a character; false if it does not belong to the value, which then has ended."""
        if not self.kind:
            self._begin(character)
        elif self._in_string:
            self._go_on(character)
        elif self.kind == "x":
            if character in SPACE or character in ",}]":
                self.ended = True
                return False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.ended = self._depth == 0
        self._parts.append(character)
        return True

    def _begin(self, character: str) -> None:
        match character:
            case "{" | "[":
                self.kind, self._depth = character, 1
            case '"':
                self.kind, self._in_string = '"', True
            case _:
                self.kind = "x"

    def _go_on(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._in_string = False
            self.ended = self.kind == '"'
