"""Samples the next token of each row of a batch: truncation, and one draw."""

import torch
from torch import Tensor

from sps2.kernels import gpu
from sps2.kernels.contracts import Choices

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
    """Draw a token of each row, [rows] int64; the same for the same logits and choices.

    `drawn` is the definition. GPUs sum probabilities in float32, the CPU in float64: a draw at
    whose very place one token ends and the next begins can differ.

    Args:
        logits: [rows, vocab] float32.
    """
    if gpu.serves(logits):
        from sps2.kernels.gpu import sample as fused

        return fused.sample(logits, choices)
    rows = zip(logits, *(each.tolist() for each in choices), strict=True)
    return torch.tensor([drawn(*row) for row in rows], dtype=torch.int64)


def drawn(
    logits: Tensor, temperature: float, min_p: float, top_k: int, top_p: float, draw: float
) -> int:
    """The token that a number `draw` from 0 to less than 1 stands for.

    Tokens that are not excluded lie side by side in the order of their ids, each as wide as its
    probability; the token is that at the place `draw` of the whole width.

    Args:
        logits: [vocab], of which the largest is finite.
        temperature: 0 takes the most likely token, the lowest of equals.
    """
    best = int(logits.argmax())
    if temperature == 0:
        return best
    heat = max(temperature, torch.finfo(logits.dtype).tiny)
    scores = (logits - logits[best]) / heat  # finite whatever the temperature
    ends = truncate(scores, min_p, top_k, top_p).softmax(-1).cumsum(-1, dtype=torch.float64)
    return int(torch.searchsorted(ends, ends[-1] * draw, right=True))
