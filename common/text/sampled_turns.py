"""Puts the tokens that were sampled in the place of an answer's text in a rendered conversation.

Tokenising an answer's text again can give other tokens than were sampled, and templates write calls
in their own way; then the KV of the answer is not found in the cache. So the conversation is
rendered a second time with marks in the place of remembered answers, and compared with the first:
tokens are used only where the template shows all that was sampled, in its place.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from sps2.common.messages import Struct

_MARK = "\ufdd1"
"""Begins and ends a mark: a noncharacter of Unicode, which no text contains."""

Part = str | Sequence[int]
"""Of a prompt: text that is tokenised, or tokens."""


class Sampled(Struct, frozen=True):
    """The tokens of an answer that came back as it was sent."""

    ids: Sequence[int]
    """Without the token that ended it."""
    opening: str
    """The text of the generation prompt before it."""
    texts: tuple[str, ...]
    """What the template must show in its place: content, thoughts, names of functions."""
    is_plain: bool
    """Whether it has content alone, which then must be shown as it is."""


def with_sampled(
    plain: str, turns: Mapping[int, Sampled], render: Callable[[Mapping[int, str]], str]
) -> list[Part]:
    """The conversation `plain` in parts: its text, and sampled tokens in the place of answers.

    Args:
        turns: the answers by their places in the conversation, in order.
        render: renders it with other contents at some places, which have nothing else then.
    """
    nonce = secrets.token_hex(8)
    between = _between([f"{_MARK}{nonce}.{place}{_MARK}" for place in turns], turns, render)
    if between is None or not plain.startswith(between[0]):
        return [plain]
    end_mark = f"{_MARK}{nonce}.end"
    text, between[-1] = plain + end_mark, between[-1] + end_mark

    parts: list[Part] = []
    begin, at = 0, len(between[0])
    for (before, after), turn in zip(pairwise(between), turns.values(), strict=True):
        opened = _unopened(before, turn.opening)
        end = at + len(opened or "") + len(turn.texts[0])
        if not (turn.is_plain and text.startswith(after, end)):
            end = text.find(after, at)
        if end < 0:
            break
        shown = text[at:end]
        if opened is not None and shown.startswith(opened) and _shows(shown[len(opened) :], turn):
            parts += [text[begin : at + len(opened)], turn.ids]
            begin = end
        at = end + len(after)
    return [*parts, text[begin:].removesuffix(end_mark)]


def _between(
    marks: Sequence[str], places: Mapping[int, Sampled], render: Callable[[Mapping[int, str]], str]
) -> list[str] | None:
    """The rendered text between the marks; None unless each is there once, in their order."""
    rest = render(dict(zip(places, marks, strict=True)))
    between = []
    for mark in marks:
        before, _, rest = rest.partition(mark)
        between.append(before)
    between.append(rest)
    return None if any(_MARK in each for each in between) else between


def _unopened(before: str, opening: str) -> str | None:
    """What of `opening` is missing at the end of `before`; None if all of it is."""
    for length in range(min(len(opening), len(before)), 0, -1):
        if before.endswith(opening[:length]):
            return opening[length:]
    return None


def _shows(shown: str, turn: Sampled) -> bool:
    if turn.is_plain:
        return shown == turn.texts[0]
    return all(text.strip() in shown for text in turn.texts)
