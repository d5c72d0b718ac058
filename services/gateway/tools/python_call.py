"""Reads a call that is written as one of Python's: `name(argument="value")`."""

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from sps2.services.gateway.tools.events import Arguments, Called, Event
from sps2.services.gateway.tools.reader import Functions, State

MOST_HELD = 1 << 16
"""Characters of a call: it is passed on when it is complete."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class PythonCall:
    """A `Reader` from the first letter of the name on; arguments are literals, by their names.

    They are Python's, or JSON's.
    """

    def __init__(self, functions: Functions) -> None:
        self.state: State = "open"
        self._functions = functions
        self._name = ""
        self._parts: list[str] = []
        self._depth = 0
        self._quote = ""
        self._is_escaped = False

    def take(self, character: str) -> tuple[bool, list[Event]]:
        """See `Reader`."""
        if not self._depth:
            if character == "(" and self._name in self._functions:
                self._depth = 1
                return True, []
            self._name += character
            if any(name.startswith(self._name) for name in self._functions):
                return True, []
            return self._refuse()
        self._parts.append(character)
        if len(self._parts) > MOST_HELD:
            return self._refuse()
        self._count(character)
        if self._depth:
            return True, []
        arguments = _arguments("".join(self._parts))
        if arguments is None:
            return self._refuse()
        self.state = "ended"
        return True, [Called(self._name), Arguments(arguments)]

    def _count(self, character: str) -> None:
        if self._quote:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == self._quote:
                self._quote = ""
        elif character in "\"'":
            self._quote = character
        elif character in "([{":
            self._depth += 1
        elif character in ")]}":
            self._depth -= 1

    def _refuse(self) -> tuple[bool, list[Event]]:
        self.state = "refused"
        return False, []


def _arguments(text: str) -> str | None:
    """The arguments as JSON, of the text after `name(`; None if they are no literals by name."""
    call = "f(" + text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        parsed = ast.parse(call, mode="eval").body
        if not isinstance(parsed, ast.Call) or parsed.args:
            return None
        lines = [line.encode() for line in call.split("\n")]
        values = {each.arg or "": _value(each.value, lines) for each in parsed.keywords}
        return None if "" in values else _json(values)
    except SystemError:  # CPython 3.11, where a finaliser parses at the same time (gh-106905)
        return _arguments(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, lines: Sequence[bytes]) -> Any:
    """A value: JSON if it can be, for words and escapes of JSON are not those of Python."""
    assert node.end_lineno is not None
    found = [*lines[node.lineno - 1 : node.end_lineno]]
    found[-1] = found[-1][: node.end_col_offset]
    found[0] = found[0][node.col_offset :]
    try:
        return json.loads(b"\n".join(found))
    except ValueError:
        return ast.literal_eval(node)


def _json(values: dict[str, Any]) -> str:
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    # a lone surrogate cannot be sent but as an escape
    return text if text.isprintable() else json.dumps(values, allow_nan=False)
