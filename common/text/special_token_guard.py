"""Keeps special tokens that users spell out in messages from acting as special tokens.

A chat template writes special tokens (`<|im_end|>`) around contents, and contents may spell them
out too. `guarded` breaks those spellings, so that in the rendered text only the template's own are
whole. `segments` finds the broken ones again and restores them.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_BREAK = "\ufdd0"
"""Inserted after each letter of a spelling: a noncharacter of Unicode, which no text contains."""
_BROKEN = re.compile(f"((?:.{_BREAK})+)", re.DOTALL)


class Segment(NamedTuple):
    """A part of a rendered conversation; a `literal` one has no special tokens."""

    text: str
    literal: bool
    ids: Sequence[int] | None = None
    """The part's tokens, where they are known; then it has no text."""


class Guard:
    """Breaks the spellings of a model's special tokens."""

    def __init__(self, spellings: Collection[str]) -> None:
        longest_first = sorted(filter(None, spellings), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def guarded(self, content: str) -> str:
        """`content` with every spelling of a special token broken; unchanged if it has none."""
        if not self._special.search(content):
            return content
        return self._special.sub(
            lambda found: "".join(letter + _BREAK for letter in found[0]),
            content.replace(_BREAK, ""),
        )

    def guarded_all(self, value: Any) -> Any:
        """`value` with all its texts guarded, those in lists and objects too, and their keys."""
        match value:
            case str():
                return self.guarded(value)
            case Mapping():
                return {
                    self.guarded_all(name): self.guarded_all(each) for name, each in value.items()
                }
            case Sequence():
                return [self.guarded_all(each) for each in value]
        return value


def segments(rendered: str) -> Iterator[Segment]:
    """Split a rendered text into restored spellings (literal) and the text between, in order."""
    for place, text in enumerate(_BROKEN.split(rendered)):
        if text:
            yield Segment(text.replace(_BREAK, ""), literal=place % 2 == 1)
