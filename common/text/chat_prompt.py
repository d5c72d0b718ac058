"""The prompt of a conversation, by the model's chat template, as text and known tokens."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from sps2.common.errors import Invalid
from sps2.common.text.sampled_turns import Part, Sampled, with_sampled
from sps2.common.text.special_token_guard import Guard, Segment, segments
from sps2.common.text.template import ChatTemplate
from sps2.common.text.tool_turns import described, with_short_ids

SAMPLED = "sampled"
"""The key of a turn's `Sampled`, if its tokens are remembered."""

_CUT = "\ufdd2"
"""Marks the end of the message that is continued: a noncharacter of Unicode."""

Turn = Mapping[str, Any]


class ChatPrompt:
    """A conversation that is rendered; `text` is all of it.

    Args:
        answering: whether it ends with the beginning of an answer.
        continuing: whether it ends within its last turn, which is not complete.
        variables: of the template.

    Raises:
        Invalid: the template refuses the turns, or does not show the one to continue.
    """

    def __init__(
        self,
        template: ChatTemplate,
        guard: Guard,
        turns: Sequence[Turn],
        tools: Sequence[Turn],
        variables: Mapping[str, Any],
        *,
        answering: bool,
        continuing: bool,
    ) -> None:
        given = list(turns)
        if not template.uses_tools:
            given, tools = described(given, tools), ()
        elif template.wants_short_ids:
            given = with_short_ids(given)
        asked = {"tools": [*tools] or None, **variables}
        try:
            self._turns, self._variables = guard.guarded_all(given), guard.guarded_all(asked)
        except RecursionError:
            raise Invalid("the conversation is nested too deeply", "messages") from None
        self._has_literals = self._turns != given or self._variables != asked
        self._template, self._guard = template, guard
        self._answering, self._continuing = answering, continuing
        self._sampled = {
            place: turn[SAMPLED]
            for place, turn in enumerate(given[: -1 if continuing else None])
            if SAMPLED in turn
        }
        self.text = self._rendered({})

    def segments(self) -> Iterator[Segment]:
        """The parts of the prompt, in order."""
        for part in self._parts():
            if not isinstance(part, str):
                yield Segment("", False, part)
            elif self._has_literals:
                yield from segments(part)
            elif part:
                yield Segment(part, False)

    def _parts(self) -> list[Part]:
        if not self._sampled:
            return [self.text]
        turns = {place: self._guarded(turn) for place, turn in self._sampled.items()}
        try:
            return with_sampled(self.text, turns, self._rendered)
        except Invalid:  # the template refuses the marks
            return [self.text]

    def _guarded(self, turn: Sampled) -> Sampled:
        return replace(turn, texts=tuple(map(self._guard.guarded, turn.texts)))

    def _rendered(self, contents: Mapping[int, str]) -> str:
        turns = [
            {"role": turn["role"], "content": contents[place]}
            if place in contents
            else {name: turn[name] for name in turn if name != SAMPLED}
            for place, turn in enumerate(self._turns)
        ]
        text = self._template.render(turns, self._answering, self._variables)
        return self._cut(turns, text) if self._continuing else text

    def _cut(self, turns: list[dict[str, Any]], whole: str) -> str:
        """`whole` as far as the end of its last turn's content."""
        last = {**turns[-1], "content": turns[-1]["content"] + _CUT}
        marked = self._template.render([*turns[:-1], last], False, self._variables)
        text, _, rest = marked.partition(_CUT)
        if not whole.startswith(text):
            text = text.rstrip()  # the template strips contents
        if _CUT in rest or _CUT not in marked or not whole.startswith(text):
            raise Invalid(
                "the model's chat template does not show the last message as it is: "
                "`continue_final_message` is not possible",
                "continue_final_message",
                "invalid_value",
            )
        return text


def opening(template: ChatTemplate, guard: Guard, variables: Mapping[str, Any]) -> str:
    """The text by which a template begins an answer; empty if it shows none."""
    turns = [{"role": "user", "content": "a"}]
    try:
        bare, whole = (
            ChatPrompt(
                template, guard, turns, (), variables, answering=answering, continuing=False
            ).text
            for answering in (False, True)
        )
    except Invalid:
        return ""
    return whole.removeprefix(bare) if whole.startswith(bare) else ""
