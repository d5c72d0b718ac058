"""Counts of tokens, kept as tensors: each step adds one token and reads all."""

import torch
from torch import Tensor


class Tally:
    """Distinct token ids with their counts.

    Args:
        tokens: counted at first, [tokens] int64.
    """

    def __init__(self, tokens: Tensor) -> None:
        self._ids, self._counts = tokens.unique(return_counts=True)
        self._places = {token: place for place, token in enumerate(self._ids.tolist())}

    def add(self, token: int) -> None:
        """Count one more occurrence of `token`."""
        place = self._places.setdefault(token, len(self._places))
        if place < len(self._ids):
            self._counts[place] += 1
        else:
            self._ids = torch.cat((self._ids, torch.tensor([token])))
            self._counts = torch.cat((self._counts, torch.ones(1, dtype=torch.int64)))

    def within(self, vocab: int) -> tuple[Tensor, Tensor]:
        """The ids within a vocabulary, and their counts: [distinct] int64 each."""
        has = (self._ids >= 0) & (self._ids < vocab)
        return self._ids[has], self._counts[has]
