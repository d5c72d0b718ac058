"""What a parser finds in the text of an answer."""

from typing import NamedTuple, Protocol


class Text(NamedTuple):
    """Text of the answer itself."""

    text: str


class Thought(NamedTuple):
    """Text that the model thinks before it answers."""

    text: str


class Called(NamedTuple):
    """A call begins; its arguments follow."""

    name: str


class Arguments(NamedTuple):
    """A part of the arguments of the call that began last: JSON as the model wrote it."""

    text: str


Event = Text | Thought | Called | Arguments


class Parser(Protocol):
    """Text in, events out; how the text is cut makes no difference to what is found in it.

    Text that turns out to be no call comes out as text, unchanged.
    """

    def add(self, text: str) -> list[Event]:
        """The events that `text` completes."""
        ...

    def close(self) -> list[Event]:
        """The rest, once no more text follows."""
        ...


def merged(events: list[Event]) -> list[Event]:
    """The same events, parts of one text or of one call's arguments in one; without empty ones."""
    whole: list[Event] = []
    for event in events:
        match whole[-1] if whole else None, event:
            case _, Text("") | Thought("") | Arguments(""):
                pass
            case Text(before), Text(text):
                whole[-1] = Text(before + text)
            case Thought(before), Thought(text):
                whole[-1] = Thought(before + text)
            case Arguments(before), Arguments(text):
                whole[-1] = Arguments(before + text)
            case _:
                whole.append(event)
    return whole
