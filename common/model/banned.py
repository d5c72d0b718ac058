"""Tokens that a request must not draw: those it does not allow, and the ends of its bad words."""

import torch
from torch import Tensor

from sps2.common.messages import Sampling


class Banned:
    """The bans of one request, which depend on its answer so far.

    Args:
        answer: the ids of the answer so far, [tokens] int64.
    """

    def __init__(self, sampling: Sampling, answer: Tensor) -> None:
        self._allowed = torch.tensor(sampling.allowed_token_ids, dtype=torch.int64)
        self._words = sampling.bad_words
        self._longest = max(map(len, self._words), default=1) - 1
        self._last = answer[len(answer) - self._longest :].tolist() if self._longest else []
        """The last tokens of the answer, as many as a bad word can begin with."""

    def seen(self, token: int) -> None:
        """Add a token of the answer."""
        if self._longest:
            self._last = [*self._last, token][-self._longest :]

    def apply(self, scores: Tensor) -> None:
        """Make banned tokens impossible, in place. scores: [vocab] float32."""
        vocab = len(scores)
        if len(self._allowed):
            allowed = self._allowed[self._allowed < vocab]
            kept = scores[allowed]
            scores.fill_(-torch.inf)
            scores[allowed] = kept
        for *begun, end in self._words:
            if end < vocab and begun == self._last[len(self._last) - len(begun) :]:
                scores[end] = -torch.inf
