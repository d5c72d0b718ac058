"""Finds what a model thinks before it answers: `<think>...</think>`."""

from typing import Literal, NamedTuple

from sps2.services.gateway.tools.events import Event, Parser, Text, Thought, merged
from sps2.services.gateway.tools.json_value import SPACE


class Tags(NamedTuple):
    """What thoughts are between."""

    opening: str
    closing: str


class Plain:
    """A `Parser` of answers that are text alone."""

    def add(self, text: str) -> list[Event]:
        """See `Parser`."""
        return [Text(text)] if text else []

    def close(self) -> list[Event]:
        """See `Parser`."""
        return []


class Thoughts:
    """A `Parser` of an answer that may begin with thoughts. Space around them is dropped.

    Args:
        rest: the parser of what follows.
        is_open: whether the prompt ends with the opening tag, so that the answer begins within.
    """

    def __init__(self, tags: Tags, rest: Parser, is_open: bool) -> None:
        self._tags = tags
        self._rest = rest
        self._state: Literal["start", "thought", "gap", "rest"] = "thought" if is_open else "start"
        self._is_first = True
        self._space: list[str] = []
        self._held = ""

    def add(self, text: str) -> list[Event]:
        """See `Parser`."""
        events: list[Event] = []
        for place, character in enumerate(text):
            match self._state:
                case "start":
                    self._begin(character)
                case "thought":
                    events += self._think(character)
                case "gap":
                    if character not in SPACE:
                        self._state = "rest"
            if self._state == "rest":
                if not self._held:
                    return merged(events) + self._rest.add(text[place:])
                held, self._held = self._held, ""
                return merged(events) + self._rest.add(held + text[place + 1 :])
        return merged(events)

    def close(self) -> list[Event]:
        """See `Parser`."""
        held = "".join(self._space) + self._held
        if self._state == "thought":
            return [Thought(held)] if self._held else []
        return (self._rest.add(held) if held else []) + self._rest.close()

    def _begin(self, character: str) -> None:
        """Before anything: the opening tag may come, or what is no thought."""
        if not self._held and character in SPACE:
            self._space.append(character)
            return
        self._held += character
        if self._held == self._tags.opening:
            self._state, self._held = "thought", ""
            self._space.clear()
        elif not self._tags.opening.startswith(self._held):
            self._state, self._held = "rest", "".join(self._space) + self._held
            self._space.clear()

    def _think(self, character: str) -> list[Event]:
        if not self._held and character in SPACE:
            if not self._is_first:
                self._space.append(character)
            return []
        self._held += character
        if self._held == self._tags.closing:
            self._state, self._held = "gap", ""
            self._space.clear()
            return []
        if self._tags.closing.startswith(self._held):
            return []
        first, rest = self._held[0], self._held[1:]
        events: list[Event] = [Thought("".join(self._space) + first)]
        self._is_first, self._held = False, ""
        self._space.clear()
        for each in rest:
            events += self._think(each)
        return events
