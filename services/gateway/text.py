"""Turns the tokens of one choice into text that may be shown, each with its tokens."""

from collections.abc import Container
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
    stop: str = ""
    """The stop string that ended the choice, if one did."""
    cut: tuple[int, ...] = ()
    """Ids of the last tokens, whose text is not shown since a stop string ended the choice."""

    @property
    def ids(self) -> list[int]:
        """Ids of all its tokens."""
        return [*(each.id for each in self.tokens), *self.cut]


class Writer:
    """Turns tokens into pieces. A token that ends the choice by its id is listed without text.

    Args:
        ends: ids of the tokens that end a choice. The last token is another where a grammar ends.
        min_tokens: stop strings are searched only in the text from this token number on.
        shows_stop: whether the text has what ended the choice, be it a token or a stop string.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        ends: Container[int],
        stops: tuple[str, ...] = (),
        min_tokens: int = 0,
        shows_stop: bool = False,
    ) -> None:
        self._detokenizer = detokenizer
        self._ends = ends
        self._shows_stop = shows_stop
        self._stops = StopStrings(stops, shows_stop)
        self._min_tokens = min_tokens
        self._made = 0
        self._shown = 0
        self._held: list[Spoken] = []

    def add(self, token: Token) -> Piece:
        """The piece that `token` completes, perhaps an empty one; the last has `finish`."""
        text = ""
        ends = token.finish == "stop" and token.id in self._ends
        silent = ends and not self._shows_stop
        if not silent:
            text = self._detokenizer.feed(token.id)
        offset = self._made
        if token.finish is not None:
            text += self._detokenizer.flush()
        if silent:
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
        tokens = self._release(everything=finish is not None)
        cut = tuple(each.id for each in self._held) if self._stops.hit else ()
        return Piece(shown, tokens, finish, self._stops.found, cut)

    def _release(self, everything: bool) -> tuple[Spoken, ...]:
        whole = everything and not self._stops.hit
        ready = [each for each in self._held if whole or each.offset < self._shown]
        del self._held[: len(ready)]
        return tuple(ready)
