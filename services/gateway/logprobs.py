"""Log-probabilities in the two forms of OpenAI's API."""

from collections.abc import Sequence
from typing import Protocol

from sps2.common.api import ChatLogprob, ChatLogprobs, CompletionLogprobs, Parameters, TopLogprob
from sps2.common.messages import TokenLogprobs
from sps2.services.gateway.text import Spoken

LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot express."""


class Vocabulary(Protocol):
    """The text and bytes of single tokens."""

    def token_text(self, index: int) -> str: ...
    def token_bytes(self, index: int) -> bytes: ...


class Numbered:
    """A vocabulary that names tokens by their ids, for `return_tokens_as_token_ids`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def token_text(self, index: int) -> str:
        """The name of token `index`."""
        return f"token_id:{index}"

    def token_bytes(self, index: int) -> bytes:
        """The bytes of token `index` itself."""
        return self._vocabulary.token_bytes(index)


def vocabulary_of(request: Parameters, vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with the names of tokens that the request wants."""
    return Numbered(vocabulary) if request.return_tokens_as_token_ids else vocabulary


def completion_logprobs(
    tokens: Sequence[Spoken], top: int, vocabulary: Vocabulary, base: int
) -> CompletionLogprobs:
    """The form of `/v1/completions`; offsets count from `base`.

    The token itself is always among the `top` alternatives, as one more if necessary.
    """
    return CompletionLogprobs(
        [vocabulary.token_text(token.id) for token in tokens],
        [None if token.logprobs is None else finite(token.logprobs.logprob) for token in tokens],
        [_alternatives(token, top, vocabulary) for token in tokens],
        [base + token.offset for token in tokens],
    )


def chat_logprobs(tokens: Sequence[Spoken], top: int, vocabulary: Vocabulary) -> ChatLogprobs:
    """The form of `/v1/chat/completions`."""

    def entry(token: int, logprob: float) -> TopLogprob:
        text, raw = vocabulary.token_text(token), vocabulary.token_bytes(token)
        return TopLogprob(text, finite(logprob), list(raw))

    def full(token: Spoken, logprobs: TokenLogprobs) -> ChatLogprob:
        own = entry(token.id, logprobs.logprob)
        others = [entry(*each) for each in logprobs.top[:top]]
        return ChatLogprob(own.token, own.logprob, own.bytes, others)

    return ChatLogprobs([full(each, each.logprobs) for each in tokens if each.logprobs is not None])


def _alternatives(token: Spoken, top: int, vocabulary: Vocabulary) -> dict[str, float] | None:
    if token.logprobs is None or top == 0:
        return None
    ranked = {token.id: token.logprobs.logprob} | dict(token.logprobs.top[:top])
    best: dict[str, float] = {}
    for each, logprob in sorted(ranked.items(), key=lambda pair: -pair[1]):
        best.setdefault(vocabulary.token_text(each), finite(logprob))
    return best


def finite(logprob: float) -> float:
    """`logprob` as JSON can have it."""
    return max(logprob, LEAST)
