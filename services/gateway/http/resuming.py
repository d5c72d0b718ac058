"""Streams that go on where a client lost them: their events have ids, for `Last-Event-ID`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple, TypeVar

from starlette.datastructures import Headers

from sps2.common.api import ChatChunk, CompletionChunk
from sps2.common.errors import Invalid
from sps2.services.gateway.http.framing import Framing

T = TypeVar("T", CompletionChunk, ChatChunk)

HEADER = "last-event-id"
NOT_KEPT = "answer_not_kept"


class Place(NamedTuple):
    """How many events of an answer a client has."""

    answer: str
    events: int


def place_in(headers: Headers) -> Place | None:
    """Where a client lost a stream; None if it wants all of it. Raises Invalid if malformed."""
    given = headers.get(HEADER, "")
    if not given:
        return None
    answer, _, events = given.rpartition(":")
    if not (answer and events.isascii() and events.isdigit() and len(events) < 9):
        raise Invalid(
            f"`Last-Event-ID` {given[:80]!r} is the id of no event of a stream from here",
            None,
            "invalid_value",
        )
    return Place(answer, int(events))


def not_kept() -> Invalid:
    """The error for an answer whose rest there is no more."""
    return Invalid(
        "the answer that `Last-Event-ID` names is not kept any more, or ended with an error: ask "
        "without this header for a new one",
        None,
        NOT_KEPT,
    )


class Numbered(Framing):
    """OpenAI's events, each with an id.

    Args:
        place: where the stream goes on.
    """

    def __init__(self, place: Place | None) -> None:
        self._events = 0 if place is None else place.events

    def written(self, value: CompletionChunk | ChatChunk) -> bytes:  # type: ignore[override]
        self._events += 1
        return f"id: {value.id}:{self._events}\n".encode() + super().written(value)


async def rest(chunks: AsyncGenerator[T, None], place: Place) -> AsyncGenerator[T, None]:
    """The chunks that a client does not have.

    Raises:
        Invalid: they are of another answer, or the client cannot have as many as it says.
    """
    events = 0
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.id != place.answer:
                raise not_kept()
            if (events := events + 1) > place.events:
                yield chunk
    if events < place.events:
        raise Invalid(
            f"`Last-Event-ID` names event {place.events} of an answer that has {events}: send the "
            "id of the last event that came, or leave the header out to have the answer again",
            None,
            "invalid_value",
        )
