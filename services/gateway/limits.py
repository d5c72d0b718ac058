"""Limits that the served model sets to a request: its context and its vocabulary."""

from collections.abc import Sequence
from typing import NamedTuple

from sps2.common.errors import Invalid
from sps2.services.gateway.served_model import Served

BAD = "invalid_value"

TRUNCATED_CONTEXTS = 16
"""A text that is cut to its last tokens may have this many times the tokens of the context."""


class Limit(NamedTuple):
    """Limits of the tokens of a prompt, and of those that may be generated.

    field: the field of the request that has the prompt. truncate: see `truncate_prompt_tokens`.
    cut_answer: see `cut_max_tokens`.
    """

    max_context: int
    max_tokens: int | None
    default: int
    field: str
    truncate: int | None = None
    cut_answer: bool = False

    @property
    def open_ended(self) -> bool:
        """Whether an answer may be shorter than `room`, where a KV pool or a quota wants it."""
        return self.max_tokens is None or self.cut_answer

    def room(self, prompt: int) -> int:
        """Most tokens after `prompt` tokens of prompt. Raises Invalid if they do not fit."""
        room, requested = self.max_context - prompt, self.max_tokens
        if self.cut_answer and requested is not None and room > 0:
            requested = min(requested, room)
        if (requested or 0) <= room and (room > 0 or requested == 0):
            return min(self.default, room) if requested is None else requested
        options = "" if requested is None else f", and `max_tokens` is {requested}"
        raise Invalid(
            f"the model's context is {self.max_context} tokens; the prompt has {prompt}{options}",
            self.field if room <= 0 else "max_tokens",
            "context_length_exceeded",
        )

    @property
    def most(self) -> int:
        """Most tokens of a prompt before it is cut."""
        return self.max_context * (1 if self.truncate is None else TRUNCATED_CONTEXTS)

    def cut(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """The last tokens of `prompt`, as many as the request wants.

        Raises:
            Invalid: `truncate_prompt_tokens` is 0, or -1 where `max_tokens` fills the context.
        """
        if self.truncate is None:
            return prompt
        tokens = self.truncate
        if tokens < 0:
            answer = self.max_tokens
            if answer is None:
                answer = self.default if self.default < self.max_context else 1
            tokens = max(0, self.max_context - answer)
        if not tokens:
            raise Invalid(
                "`truncate_prompt_tokens` leaves no token of the prompt: it must be at least 1, or "
                "-1 with `max_tokens` below the context",
                "truncate_prompt_tokens",
                BAD,
            )
        return prompt[-tokens:]


def check_ids(ids: Sequence[int], served: Served, field: str) -> None:
    """Raise Invalid, naming the field, if the model lacks any of these token ids."""
    if ids and max(ids) >= served.vocab_size:
        raise Invalid(
            f"`{field}` has token id {max(ids)}; the model has ids 0 to {served.vocab_size - 1}",
            field,
            BAD,
        )
