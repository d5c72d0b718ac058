"""The sampling options of a request, and its tokens."""

from typing import Literal

from sps2.common.messages.base import FinishReason, Struct

Pooling = Literal["last", "mean"]
"""Of the prompt's tokens: the last one's, or the mean of all."""


class Sampling(Struct, frozen=True):
    """How tokens are drawn and when to stop. `top_k` 0 and `min_p` 0 mean off."""

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    """How many alternatives to report with each token; None reports no log-probabilities."""
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    """Ends of generation: the model's own (unless ignored) and the caller's."""
    prompt_logprobs: int | None = None
    """As `logprobs`, for the prompt's own tokens (`echo` with `logprobs`)."""
    allowed_token_ids: tuple[int, ...] = ()
    """No other tokens are drawn; empty allows all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of token ids whose last is not drawn after the others."""
    answered: int = 0
    """How many of the prompt's last tokens belong to the answer: those made before a shard was
    lost. Later tokens are numbered after them, and `max_tokens` includes them."""

    grammar: str = ""
    """What the answer must follow, as llguidance serialises it (JSON); empty is free text. See
    `sps2.common.grammar`."""

    pooling: Pooling | None = None
    """Which hidden states of the prompt make its embedding; None makes none."""

    @property
    def left(self) -> int:
        """How many tokens may follow."""
        return self.max_tokens - self.answered


class TokenLogprobs(Struct, frozen=True, omit_defaults=True):
    """Log-probability of a token, and of the most likely tokens at its position, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0
    """1 if the token is the most likely one; 0 where ranks are not counted: in answers."""


class Token(Struct, frozen=True):
    """Token number `index` of the answer. The last one has `finish`, why generation ended."""

    index: int
    id: int
    logprobs: TokenLogprobs | None = None
    finish: FinishReason | None = None
