"""Facts hidden in a document, and prompts that ask for them; imports no torch."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sps2.common.errors import Invalid

if TYPE_CHECKING:
    from sps2.common.text.tokens import Tokenizer

TEAMS = ("Amber", "Birch", "Copper", "Delta", "Ember", "Falcon", "Garnet", "Harbor")
SHALLOW, DEEP = 0.04, 0.68
"""The positions of the first and the last needle, as shares of the document."""
CHARACTERS_PER_TOKEN = 12
"""More than any relevant text has: no more characters need be tokenised."""

_PLACE = "<<document>>"


class Needle(NamedTuple):
    """A fact. depth: its position, as a share of the document. room: three digits."""

    depth: float
    team: str
    room: str

    @property
    def text(self) -> str:
        return f"\nNote: {self.answer}{self.room}.\n"

    @property
    def question(self) -> str:
        return f"\n\nIn which room does the meeting with the {self.team} team take place?"

    @property
    def answer(self) -> str:
        """The answer without the room."""
        return f"The meeting with the {self.team} team takes place in room "


class Prompt(NamedTuple):
    """A prompt: a document in the chat template, with a question.

    document: its positions in `ids`.
    answer: the expected tokens, each with its number of digits of the room.
    """

    ids: list[int]
    document: range
    needle: Needle | None
    answer: tuple[tuple[int, int], ...]


def hidden_in(document: str) -> list[Needle]:
    """The needles of a document: always the same ones, but different from other documents'."""
    draw = random.Random(document)
    rooms = draw.sample(range(100, 1000), len(TEAMS))
    step = (DEEP - SHALLOW) / (len(TEAMS) - 1)
    return [
        Needle(SHALLOW + step * index, team, str(room))
        for index, (team, room) in enumerate(zip(TEAMS, rooms, strict=True))
    ]


def prompts(
    tokenizer: "Tokenizer",
    text: str,
    tokens: int,
    needles: Sequence[Needle],
    questions: Sequence[Needle],
) -> list[Prompt]:
    """Make a prompt of about `tokens` tokens, and never more, for each needle in `questions`.

    All have the same document, with all needles in it. Without questions, one prompt requests a
    summary. The beginning of the answer is part of the prompt, so that the prefill itself predicts
    the room's first token.

    Raises:
        Invalid: the text is too short, or `tokens` too few for the needles.
    """
    head, *ends = _frame(tokenizer, questions)
    room = tokens - len(head) - max(len(end.ids) for end in ends)
    notes = [tokenizer.encode(needle.text, add_special_tokens=False) for needle in needles]
    plain = room - sum(map(len, notes))
    if plain < 2 * room // 3:
        raise Invalid(f"{tokens} tokens are too few for {len(needles)} needles", "tokens")
    ids = tokenizer.encode(text[: CHARACTERS_PER_TOKEN * plain], add_special_tokens=False)[:plain]
    if len(ids) < plain:
        raise Invalid(f"the text has {len(ids)} tokens, {plain} are needed for {tokens}", "tokens")
    for needle, note in sorted(zip(needles, notes, strict=True), reverse=True):
        place = _line_end(tokenizer, ids, round(needle.depth * plain))
        ids[place:place] = note
    document = range(len(head), len(head) + len(ids))
    return [Prompt([*head, *ids, *end.ids], document, end.needle, end.answer) for end in ends]


class _End(NamedTuple):
    ids: list[int]
    needle: Needle | None
    answer: tuple[tuple[int, int], ...]


def _frame(
    tokenizer: "Tokenizer", questions: Sequence[Needle]
) -> tuple[list[int], *tuple[_End, ...]]:
    """The tokens before the document, and those after it for each question."""
    try:
        text = tokenizer.template.render([{"role": "user", "content": _PLACE}])
        before, _, after = text.partition(_PLACE)
        head = tokenizer.encode(before, add_special_tokens=False)
    except Invalid:  # a base model
        head, after = [tokenizer.bos_id] if tokenizer.bos_id is not None else [], "\n\n"
    if not questions:
        end = tokenizer.encode(f"\n\nSummarise this.{after}", add_special_tokens=False)
        return head, _End(end, None, ())
    ends = []
    for needle in questions:
        whole = f"{needle.question}{after}{needle.answer}{needle.room}"
        ids = tokenizer.encode(whole, add_special_tokens=False)
        first = len(ids)
        while needle.room not in "".join(map(tokenizer.token_text, ids[first:])):
            first -= 1
        digits = [sum(c.isdigit() for c in tokenizer.token_text(each)) for each in ids[first:]]
        answer = tuple(zip(ids[first:], digits, strict=True))
        ends.append(_End(ids[:first], needle, answer))
    return head, *ends


def _line_end(tokenizer: "Tokenizer", ids: list[int], place: int) -> int:
    """The end of the line at `place`; `place` itself if that is over 100 tokens away."""
    for index in range(place, min(place + 100, len(ids))):
        if tokenizer.token_text(ids[index]).endswith("\n"):
            return index + 1
    return place
