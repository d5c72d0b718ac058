"""Prompts made of blocks: equal block ids become equal tokens, so that prefix caches hit."""

import random
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import Generic, TypeVar

import msgspec

from sps2.cli.workload.requests import Turn

T = TypeVar("T")

POOL = 1 << 16
"""Tokens that were drawn beforehand; each block is a piece of them after its own id."""
SPREAD = 2654435761
"""Knuth's multiplier: neighbouring ids take pieces that are far apart."""
LEAST_WORDS = 64
UNSHARED = 1 << 40
"""Ids from here on are of prompts that share nothing."""
VOCABULARY = 30_000
"""Token ids below this number are words for the models in use; Llama 2 has 32,000."""


class Prompts:
    """Makes prompts that are token ids below `vocabulary`, or text of one word per token.

    known: tells whether a word is one token; all are taken to be without it.
    """

    def __init__(
        self,
        seed: int = 0,
        vocabulary: int = VOCABULARY,
        known: Callable[[str], bool] | None = None,
    ) -> None:
        draw = random.Random(f"prompts {seed}")
        low = min(1000, vocabulary // 4)  # low ids are often control tokens
        self._ids = _Blocks(draw.sample(range(low, vocabulary), vocabulary - low), draw)
        words = _words()
        chosen = [word for word in words if known is None or known(f" {word}")]
        if len(chosen) < LEAST_WORDS:  # a tokenizer of another language: lengths are estimates
            chosen = words
        self._words = _Blocks(draw.sample(chosen, len(chosen)), draw)

    def tokens(self, turn: Turn, block_tokens: int, number: int) -> list[int]:
        """Token ids of a request's prompt. number: of the request, if it shares nothing."""
        return [each for part in self._ids.parts(turn, block_tokens, number) for each in part]

    def text(self, turn: Turn, block_tokens: int, number: int) -> str:
        """A text of about as many tokens as the prompt has."""
        parts = self._words.parts(turn, block_tokens, number)
        return " ".join(word for part in parts for word in part)


class _Blocks(Generic[T]):
    """Blocks of symbols: first the digits of the block's id, then a piece of the pool."""

    def __init__(self, symbols: Sequence[T], draw: random.Random) -> None:
        self._symbols = symbols
        self._pool = draw.choices(symbols, k=POOL)
        self._digits = 1
        while len(symbols) ** self._digits < 2 * UNSHARED:
            self._digits += 1

    def parts(self, turn: Turn, block_tokens: int, number: int) -> Iterator[Sequence[T]]:
        """The pieces of a prompt."""
        if not turn.blocks:
            yield self._block(UNSHARED + number, turn.prompt_tokens)
            return
        left = turn.prompt_tokens
        for block in turn.blocks:
            yield self._block(block, min(left, block_tokens))
            left -= block_tokens

    def _block(self, number: int, tokens: int) -> list[T]:
        start = number * SPREAD % POOL
        made = []
        for _ in range(self._digits):
            number, digit = divmod(number, len(self._symbols))
            made.append(self._symbols[digit])
        while len(made) < tokens:
            made += self._pool[start : start + tokens - len(made)]
            start = 0
        return made[:tokens]


def _words() -> list[str]:
    """Common words; with the blank before it, each is one token for most tokenizers."""
    text = files("sps2.cli.bench.serve").joinpath("words.json").read_bytes()
    return msgspec.json.decode(text, type=list[str])
