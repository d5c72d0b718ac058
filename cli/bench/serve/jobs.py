"""The requests that a dataset is made into."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sps2.cli.bench.serve.backends import Prompt
from sps2.cli.workload.arrivals import Arrivals
from sps2.cli.workload.requests import Turn

if TYPE_CHECKING:
    from sps2.common.text.tokens import Tokenizer

CHARACTERS = 4
"""Of a token of English text, about; used where no tokenizer counts."""


@dataclass(frozen=True)
class Job:
    """A request to send.

    prompt: makes its prompt of the answers so far in its session.
    """

    turn: Turn
    prompt: Callable[[Sequence[str]], Prompt]


@dataclass(frozen=True)
class Wanted:
    """What a dataset is to be like.

    name: of the dataset. count: the number of requests. prompt_tokens, answer_tokens: their
    lengths, for datasets that have none themselves; None: the dataset's usual ones.
    range_ratio: lengths differ by up to this share. prefix_tokens: that all prompts begin with.
    arrivals: when requests come. is_self_timed: whether a trace keeps the pattern of its times.
    is_chat, is_text: whether prompts are messages, or text rather than token ids.
    """

    name: str
    path: Path | None
    count: int
    prompt_tokens: int | None
    answer_tokens: int | None
    range_ratio: float
    prefix_tokens: int
    arrivals: Arrivals
    is_self_timed: bool
    scale: float
    longest: int | None
    span_s: float | None
    think_scale: float
    longest_think_s: float | None
    sessions: int | None
    think_s: float
    is_chat: bool
    is_text: bool
    seed: int


def as_prompt(wanted: Wanted, text: str) -> Prompt:
    """A text as the backend takes it."""
    return [{"role": "user", "content": text}] if wanted.is_chat else text


def count(text: str, tokenizer: "Tokenizer | None") -> int:
    """The tokens of a text, which are estimated without a tokenizer."""
    return max(1, len(tokenizer.encode(text)) if tokenizer else len(text) // CHARACTERS)
