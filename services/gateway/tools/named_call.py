"""Reads a call as newer models of Mistral write it: `NAME[ARGS]{...}`, or `NAME{...}`."""

import re

from sps2.services.gateway.tools.events import Arguments, Called, Event
from sps2.services.gateway.tools.json_value import JsonValue
from sps2.services.gateway.tools.reader import Functions, State

ID, ARGS = "[CALL_ID]", "[ARGS]"
MOST_HEAD = 256
"""Characters that may come between the name and the arguments."""
_NAME = re.compile("[A-Za-z0-9_.-]+")
_REST = re.compile(rf"[\s\[\]A-Za-z0-9_-]{{0,{MOST_HEAD}}}")
_TAGS = re.compile(r"\s*(\[CALL_ID\]\s*[A-Za-z0-9_-]*\s*)?(\[ARGS\]\s*)?")


class NamedCall:
    """A `Reader`, from the first letter of the name on. The model's own id is dropped."""

    def __init__(self, functions: Functions) -> None:
        self.state: State = "open"
        self._functions = functions
        self._head = ""
        self._arguments = JsonValue()

    def take(self, character: str) -> tuple[bool, list[Event]]:
        """See `Reader`."""
        if self.state == "call":
            self._arguments.take(character)
            if self._arguments.ended:
                self.state = "ended"
            return True, [Arguments(character)]
        if character == "{" and (name := self._name()):
            self.state = "call"
            self._arguments.take(character)
            return True, [Called(name), Arguments(character)]
        self._head += character
        if character == "{" or not self._may_go_on():
            self.state = "refused"
            return False, []
        return True, []

    def _name(self) -> str | None:
        """The function that is called, if arguments may begin now."""
        found = _NAME.match(self._head)
        if found and found[0] in self._functions and _TAGS.fullmatch(self._head, found.end()):
            return found[0]
        return None

    def _may_go_on(self) -> bool:
        found = _NAME.match(self._head)
        if not found:
            return False
        if found.end() == len(self._head):
            return any(name.startswith(found[0]) for name in self._functions)
        return found[0] in self._functions and bool(_REST.fullmatch(self._head, found.end()))
