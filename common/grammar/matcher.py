"""Where one answer is in its grammar, and which tokens may follow there."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sps2.common.errors import Internal, Invalid

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_CHARS = 300
"""Of a reason, which may quote a part of the grammar."""
TOO_COMPLEX = "the grammar is too complex: it needs too much work for one token"
REASONS = {
    "NoExtensionBias": "no text follows the grammar",
    "ParserTooComplex": TOO_COMPLEX,
    "LexerTooComplex": TOO_COMPLEX,
    "Parser Error: Current row has": TOO_COMPLEX,
    "parser error: Too many items": TOO_COMPLEX,
    "lexer error: too many": TOO_COMPLEX,
}
"""What the library's words mean, by their beginnings."""
SPECIAL = b"\xff"
"""The first byte of what the library takes for the text of a special token."""
FAILED = "the answer cannot follow its grammar: "
ADVICE = " Enable 'coerce_one_of' option to approximate oneOf with anyOf"
"""The library's, about an option that is not its caller's to set."""


class Matcher:
    """Follows one answer through its grammar, token by token. Use it on one thread at a time.

    Args:
        matcher: at the beginning of the grammar; it is changed from now on.
        special: ids of the special tokens.
    """

    def __init__(
        self, matcher: "LLMatcher", tokenizer: "LLTokenizer", special: NDArray[np.int64]
    ) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._special = special
        self._allowed = np.zeros((tokenizer.vocab_size + 31) // 32, np.int32)
        self._address = self._allowed.ctypes.data

    @property
    def ended(self) -> bool:
        """Whether the answer is complete: only an end of generation could follow."""
        return self._matcher.is_stopped()

    def ban(self, scores: NDArray[np.float32]) -> None:
        """Set the scores of all tokens that may not follow to -inf, in place.

        Args:
            scores: [vocab] of the model, which may have more ids than the tokeniser: those are
                banned as well.

        Raises:
            Invalid: no text follows here, or the grammar needs too much work.
        """
        self._matcher.unsafe_compute_mask_ptr(self._address, self._allowed.nbytes)
        self._check()
        banned = np.unpackbits((~self._allowed).view(np.uint8), bitorder="little")
        if not banned[self._special].all():
            self._spell(banned)
        ids = min(len(scores), len(banned))
        np.copyto(scores[:ids], -np.inf, where=banned[:ids].view(np.bool_))
        scores[ids:] = -np.inf

    def _spell(self, banned: NDArray[np.uint8]) -> None:
        """Where the grammar wants a text that spells a special token, allow its first letters.

        The library allows the special token itself there, which its grammar then does not take.
        """
        text = self._matcher.compute_ff_bytes()
        if text and not text.startswith(SPECIAL) and np.count_nonzero(banned) == len(banned) - 1:
            banned[self._special] = 1
            banned[self._tokenizer.greedy_tokenize(text.decode(errors="ignore"))[:1]] = 0

    def advance(self, *tokens: int) -> None:
        """Go on behind the next tokens of the answer.

        Raises:
            Internal: one of them may not follow.
            Invalid: no text follows, or the grammar needs too much work here.
        """
        self._matcher.consume_tokens(list(tokens))
        self._check()

    def rollback(self, tokens: int) -> None:
        """Go back to before the last tokens, as after a draft that was not accepted.

        Raises:
            Internal: there were not as many.
        """
        self._matcher.rollback(tokens)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            why = reason(self._matcher)
            if why in REASONS.values():  # of the request's own grammar
                raise Invalid(f"{FAILED}{why}", None, "invalid_value")
            raise Internal(f"{FAILED}{why}")


def reason(matcher: "LLMatcher") -> str:
    """Why a matcher cannot be used, in a line."""
    first, *more = matcher.get_error().splitlines()
    for words, meaning in REASONS.items():
        if first.startswith(words):
            return meaning
    causes = [line.removeprefix("error: ") for line in more if line.startswith("error: ")]
    first = first.removesuffix(ADVICE).removesuffix(":")
    return ": ".join([first, *causes])[:MOST_CHARS]
