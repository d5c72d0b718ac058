"""Turns the tokens of one choice into text that may be shown, each with its tokens."""

from typing import Protocol

import msgspec

from sps2.common.messages import FinishReason, Token, TokenLogprobs
from sps2.services.gateway.stops import StopStrings


class Detokenizer(Protocol):
    """Token ids in, text out as soon as its characters are complete."""

    def feed(self, index: int) -> str: ...
    def flush(self) -> str: ...


class Spoken(msgspec.Struct, frozen=True):
    """A token; its text, if any, begins `offset` characters into the choice's text."""

    id: int
    offset: int
    logprobs: TokenLogprobs | None


class Piece(msgspec.Struct, frozen=True):
    """A part of a choice; the last has the reason why the choice ended."""

    text: str = ""
    tokens: tuple[Spoken, ...] = ()
    finish: FinishReason | None = None


class Writer:
    """Turns tokens into pieces. A token that ends the choice by its id is listed without text.

    Args:
        min_tokens: stop strings are searched only in the text from this token number on.
    """

    def __init__(
        self, detokenizer: Detokenizer, stops: tuple[str, ...] = (), min_tokens: int = 0
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)
        self._min_tokens = min_tokens
        self._made = 0
        self._shown = 0
        self._held: list[Spoken] = []

    def add(self, token: Token) -> Piece:
        """The piece that `token` completes, perhaps an empty one; the last has `finish`."""
        text = ""
        if token.finish != "stop":
            text = self._detokenizer.feed(token.id)
        offset = self._made
        if token.finish is not None:
            text += self._detokenizer.flush()
        if token.finish == "stop":
            offset += len(text)
        self._held.append(Spoken(token.id, offset, token.logprobs))
        self._made += len(text)

        finish = token.finish
        shown = text if token.index < self._min_tokens - 1 else self._stops.add(text)
        if self._stops.hit:
            finish = "stop"
        elif finish is not None:
            shown += self._stops.flush()
        self._shown += len(shown)
        return Piece(shown, self._release(everything=finish is not None), finish)

    def _release(self, everything: bool) -> tuple[Spoken, ...]:
        whole = everything and not self._stops.hit
        ready = [each for each in self._held if whole or each.offset < self._shown]
        del self._held[: len(ready)]
        return tuple(ready)
