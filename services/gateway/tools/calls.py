"""Finds calls in the text of an answer: the one machine, with what families of models differ in."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from sps2.services.gateway.tools.events import Called, Event, Text, merged
from sps2.services.gateway.tools.json_value import SPACE
from sps2.services.gateway.tools.reader import Functions, Reader


class Form(NamedTuple):
    """How a family of models writes calls."""

    begin: Callable[[str, Functions], Reader | None]
    """The reader of a call with this first character; None if no call begins so."""
    openers: tuple[str, ...] = ()
    """What begins calls, anywhere in an answer."""
    closer: str = ""
    """What ends them; a model may leave it out."""
    bare: str = ""
    """First characters with which a whole answer may be calls, without an opener."""
    lists: bool = False
    """Whether calls may be in a list: `[..., ...]`."""
    separator: str = ""
    """Between calls, besides space."""
    python: bool = False
    """Whether calls may be written as Python's."""


class Calls:
    """A `Parser` of calls. Space around them is dropped; nothing else is.

    What looks like a call but names none of the functions is text.
    """

    def __init__(self, form: Form, functions: Functions) -> None:
        self._form = form
        self._functions = functions
        self._state: Literal["text", "opened", "reading", "after"] = "text"
        self._is_first = True
        """Whether nothing but space has come."""
        self._drops_space = True
        """Whether space is dropped if a call follows."""
        self._space: list[str] = []
        self._held: list[str] = []
        """What is text if it is no call."""
        self._in_list = False
        self._reader: Reader | None = None
        self._events: list[Event] = []

    def add(self, text: str) -> list[Event]:
        """See `Parser`."""
        if self._is_plain(text):
            return [Text(text)]
        for character in text:
            self._step(character)
        return self._found()

    def close(self) -> list[Event]:
        """See `Parser`."""
        match self._state:
            case "text" if self._held or self._is_first:
                self._release()
            case "opened" | "reading" if self._held:
                self._release()
        return self._found()

    def _found(self) -> list[Event]:
        events, self._events = merged(self._events), []
        return events

    def _is_plain(self, text: str) -> bool:
        """Whether `text` is text alone, as most is: a short cut."""
        if self._state != "text" or self._drops_space or self._held or not text:
            return False
        return not any(opener[0] in text for opener in self._form.openers)

    def _step(self, character: str) -> None:
        match self._state:
            case "text":
                self._look(character)
            case "opened":
                self._open(character)
            case "reading":
                self._read(character)
            case "after":
                self._follow(character)

    def _look(self, character: str) -> None:
        """Text, in which an opener may begin."""
        if self._drops_space and not self._held and character in SPACE:
            self._space.append(character)
            return
        if self._is_first and not self._held and character in self._form.bare:
            self._state = "opened"
            self._open(character)
            return
        self._held.append(character)
        held = "".join(self._held)
        if held in self._form.openers:
            self._state = "opened"
            return
        while held and not any(opener.startswith(held) for opener in self._form.openers):
            self._say(held[0])
            held = held[1:]
        self._held = list(held)

    def _open(self, character: str) -> None:
        """After an opener, or between the calls of a list."""
        if character == "[" and self._form.lists and not self._in_list:
            self._in_list = True
        elif character not in SPACE:
            self._reader = self._form.begin(character, self._functions)
            if self._reader is None:
                self._refuse(character)
            else:
                self._state = "reading"
                self._read(character)
            return
        self._held.append(character)

    def _read(self, character: str) -> None:
        assert self._reader is not None
        belongs, events = self._reader.take(character)
        if self._reader.state == "refused":
            self._refuse(character)
            return
        if any(isinstance(event, Called) for event in events):
            self._space.clear()
            self._held.clear()
            self._is_first = False
        self._events += events
        if self._reader.state == "open":
            self._held.append(character)
        elif self._reader.state == "ended":
            self._state = "after"
            if not belongs:
                self._follow(character)

    def _follow(self, character: str) -> None:
        """After a call: what separates it from the next, or ends the calls."""
        form = self._form
        if not self._held and character in SPACE:
            self._space.append(character)
            return
        held = "".join(self._held) + character
        if self._in_list:
            if held == "]":
                self._in_list = False
                return
            if held == ",":
                self._reopen(held)
                return
        elif form.closer and form.closer.startswith(held):
            self._held.append(character)
            if held == form.closer:
                self._held.clear()
                self._space.clear()
                self._leave()
            return
        elif form.separator == held:
            self._reopen(held)
            return
        elif form.separator and form.begin(held, self._functions):
            self._reopen("")
            self._open(held)
            return
        self._held.clear()
        self._leave()
        for each in held:
            self._step(each)

    def _reopen(self, held: str) -> None:
        self._held = [*self._space, *held]
        self._space.clear()
        self._state = "opened"

    def _leave(self) -> None:
        self._state, self._in_list, self._drops_space = "text", False, True

    def _refuse(self, character: str) -> None:
        """What is held is text; the character is looked at anew."""
        self._release()
        self._leave()
        self._drops_space = False
        self._step(character)

    def _release(self) -> None:
        held = "".join(self._held)
        self._held.clear()
        self._say(held)

    def _say(self, text: str) -> None:
        self._is_first = self._drops_space = False
        self._events.append(Text("".join(self._space) + text))
        self._space.clear()
