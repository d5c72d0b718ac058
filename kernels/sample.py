"""Samples the next token of each row of a batch: truncation, and a draw by seed."""

import torch
from torch import Tensor

from sps2.kernels import gpu
from sps2.kernels.contracts import Choices

WORD = 0xFFFFFFFF
MARGIN = 1e-5
"""Far more than the rounding error of a sum of float32 shares."""


def truncate(scores: Tensor, min_p: float, top_k: int, top_p: float) -> Tensor:
    """Set scores [vocab] to -inf of tokens that min_p, top_k and top_p, in this order, exclude.

    `top_p` keeps a token if the tokens before it, best first and equals by id, have less than
    `top_p` together.
    """
    if min_p > 0:
        weights = (scores - scores.max()).exp_()  # relative to the most likely token
        scores = scores.masked_fill(weights < min_p, -torch.inf)
    if 0 < top_k < len(scores):
        least = scores.topk(top_k).values[-1]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if top_p < 1:
        kept = _nucleus(scores.softmax(-1), top_p)
        scores = torch.full_like(scores, -torch.inf).index_copy_(0, kept, scores[kept])
    return scores


def _nucleus(shares: Tensor, top_p: float) -> Tensor:
    """The tokens that `top_p` keeps, best first.

    A kept token has at least 1 / vocab of the mass that `top_p` leaves out: all tokens with less
    have less than that together. So few tokens are sorted, unless rounding could matter.
    """
    likely = (shares >= (1 - top_p) / len(shares)).nonzero()[:, 0]
    candidates = likely if shares[likely].sum() > top_p + MARGIN else torch.arange(len(shares))
    ordered, order = shares[candidates].sort(descending=True, stable=True)
    inside = ordered.cumsum(-1) - ordered < top_p
    inside[0] = True
    return candidates[order[inside]]


def sample(logits: Tensor, choices: Choices) -> Tensor:
    """Draw a token of each row, [rows] int64; the same for the same logits, choices and seed.

    Steps: temperature, `truncate`, then the first of independent exponential clocks whose rates are
    the probabilities. On a GPU, `top_p` keeps all of equally likely tokens, or none.

    Args:
        logits: [rows, vocab] float32.
    """
    if gpu.serves(logits):
        from sps2.kernels.gpu import sample as fused

        return fused.sample(logits, choices)
    tokens = torch.empty(len(logits), dtype=torch.int64)
    clocks = torch.arange(logits.shape[1])
    for row, (temperature, min_p, top_k, top_p, seed) in enumerate(
        zip(*(each.tolist() for each in choices), strict=True)
    ):
        scores = logits[row]
        if temperature > 0:
            scores = truncate(scores / temperature, min_p, top_k, top_p)
            scores = scores - uniform(seed, clocks).log_().neg_().log_()
        tokens[row] = scores.argmax()
    return tokens


def uniform(seed: int, counters: Tensor) -> Tensor:
    """Random numbers in (0, 1) by Philox 4x32-10 (Random123, SC 2011), equal to Triton's."""
    a, b, c, d = counters, *torch.zeros(3, len(counters), dtype=torch.int64)
    low, high = seed & WORD, seed >> 32 & WORD
    for _ in range(10):
        a, c, b, d = (
            _high(0xCD9E8D57, c) ^ b ^ low,
            _high(0xD2511F53, a) ^ d ^ high,
            0xCD9E8D57 * c & WORD,
            0xD2511F53 * a & WORD,
        )
        low, high = low + 0x9E3779B9 & WORD, high + 0xBB67AE85 & WORD
    folded = torch.where(a > WORD >> 1, WORD - a, a)
    return (folded.float() * 4.6566127342e-10).clamp_(min=1e-10)


def _high(a: int, b: Tensor) -> Tensor:
    """The upper half of the product of two words."""
    return a * (b >> 16) + (a * (b & 0xFFFF) >> 16) >> 16
