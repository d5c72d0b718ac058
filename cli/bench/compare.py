"""Compares next-token distributions of prefill settings with those of exact attention."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sps2.cli.bench.results import Quality
from sps2.common.model.llama import Llama

LOGITS_ROWS = 256
"""Rows whose logits are in memory at a time: those of 8,000 rows take gigabytes."""


class Rows(NamedTuple):
    """One float32 per compared position, [rows] each; nll in nats, of the token that follows.

    kl: KL(exact || setting) in nats. agrees: 1 where both have the same most likely token.
    """

    exact_nll: Tensor
    nll: Tensor
    kl: Tensor
    agrees: Tensor

    def last(self, share: float) -> "Rows":
        """The last `share` of the rows."""
        first = len(self.nll) - round(share * len(self.nll))
        return Rows(*(each[first:] for each in self))


def compare(
    model: Llama, ids: Sequence[int], exact: Tensor, others: Sequence[Tensor], part: range
) -> list[Rows]:
    """Compare the distributions that predict the tokens at the positions `part` of `ids`.

    Args:
        exact: hidden states with exact attention, [tokens, hidden_size] of all of `ids`.
        others: the same for each setting.
        part: consecutive positions, from 1 on.
    """
    targets = torch.tensor(ids)[part.start : part.stop]
    found: list[list[Rows]] = [[] for _ in others]
    for first in range(0, len(targets), LOGITS_ROWS):
        chunk = targets[first : first + LOGITS_ROWS, None]
        rows = slice(part.start - 1 + first, part.start - 1 + first + len(chunk))
        reference = model.logits(exact[rows]).log_softmax(-1)
        weights, best = reference.exp(), reference.argmax(-1)
        for parts, other in zip(found, others, strict=True):
            there = model.logits(other[rows]).log_softmax(-1)
            agrees = (there.argmax(-1) == best).float()
            exact_nll, nll = (-each.gather(1, chunk)[:, 0] for each in (reference, there))
            kl = there.sub_(reference).mul_(weights).sum(-1).neg_()
            parts.append(Rows(exact_nll, nll, kl, agrees))
    return [joined(parts) for parts in found]


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several chunks or documents, concatenated."""
    return Rows(*(torch.cat(each) for each in zip(*parts, strict=True)))


def summary(rows: Rows) -> Quality:
    """The means of rows, with standard errors. There must be at least two rows."""
    tokens = len(rows.nll)
    worse = (rows.nll - rows.exact_nll).double()
    ratio = math.exp(float(worse.mean()))
    return Quality(
        tokens,
        math.exp(float(rows.exact_nll.double().mean())),
        ratio - 1,
        ratio * float(worse.std()) / math.sqrt(tokens),
        float(rows.kl.double().mean()),
        float(rows.kl.double().std()) / math.sqrt(tokens),
        float(rows.agrees.double().mean()),
    )
