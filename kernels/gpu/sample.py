"""Samples the next token of each row on a GPU, without sorting or waiting for the device.

The smallest kept score is found bit by bit: it is the largest number at or above which there are
enough tokens, or enough mass. Scores are compared as unsigned integers in the same order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sps2.kernels import check
from sps2.kernels.contracts import Choices

CHUNK = 4096
"""Tokens that a program reads at a time."""


def sample(logits: Tensor, choices: Choices) -> Tensor:
    """`sps2.kernels.sample.sample`."""
    check.shaped("logits", logits, (None, None))
    check.typed("logits", logits, torch.float32)
    check.dense("logits", logits)
    rows, vocab = logits.shape
    if vocab == 0:
        raise ValueError("logits has no tokens")
    kinds = (torch.float32, torch.float32, torch.int32, torch.float32, torch.int64)
    for (name, x), kind in zip(choices._asdict().items(), kinds, strict=True):
        check.shaped(f"choices.{name}", x, (rows,))
        check.typed(f"choices.{name}", x, kind)
        check.beside(f"choices.{name}", x, logits)
        if not x.is_contiguous():
            raise ValueError(f"choices.{name} must be contiguous")
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        with torch.cuda.device_of(logits):
            _sample[rows,](
                *(logits, *choices, tokens, logits.stride(0), vocab), CHUNK=CHUNK, num_warps=8
            )
    return tokens


@triton.jit
def _sample(
    LOGITS, TEMPERATURE, MIN_P, TOP_K, TOP_P, SEEDS, TOKENS,
    logits_row, vocab, CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    LOGITS += row * logits_row
    temperature = tl.load(TEMPERATURE + row)
    random = temperature > 0
    heat = tl.where(random, temperature, 1.0)
    peak = float("-inf")
    for first in range(0, vocab, CHUNK):
        scores = _scores(LOGITS, first, vocab, heat, CHUNK)
        peak = tl.maximum(peak, tl.max(scores, 0))

    floor = tl.full([1], 0, tl.uint32)
    if random:
        min_p, top_k, top_p = tl.load(MIN_P + row), tl.load(TOP_K + row), tl.load(TOP_P + row)
        if (top_k > 0) & (top_k < vocab):
            most = top_k.to(tl.float32)
            floor = _least(LOGITS, vocab, heat, peak, min_p, floor, most, False, CHUNK)
        if top_p < 1:
            mass = _above(LOGITS, vocab, heat, peak, min_p, floor, floor, True, CHUNK)
            most = tl.maximum(top_p * tl.sum(mass, 0), 1e-30)  # the best always
            floor = _least(LOGITS, vocab, heat, peak, min_p, floor, most, True, CHUNK)
    else:
        min_p = 0.0

    best, token = float("-inf"), 0
    seed = tl.load(SEEDS + row)
    for first in range(0, vocab, CHUNK):
        scores = _scores(LOGITS, first, vocab, heat, CHUNK)
        kept = (_ordered(scores) >= floor) & (tl.exp(scores - peak) >= min_p)
        at = first + tl.arange(0, CHUNK)
        if random:
            clock = tl.maximum(tl.rand(seed, at), 1e-10)
            scores -= tl.log(-tl.log(clock))
        scores = tl.where(kept & (at < vocab), scores, float("-inf"))
        here = tl.max(scores, 0)
        if here > best:
            best = here
            token = tl.min(tl.where(scores == here, at, vocab), 0)
    tl.store(TOKENS + row, token)


@triton.jit
def _scores(LOGITS, first, vocab, heat, CHUNK: tl.constexpr):
    at = first + tl.arange(0, CHUNK)
    logits = tl.load(LOGITS + at, mask=at < vocab, other=float("-inf"))
    return tl.div_rn(logits, tl.full([CHUNK], 1.0, tl.float32) * heat)


@triton.jit
def _ordered(x):
    """Floats as unsigned integers in the same order."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 != 0, ~bits, bits | 0x80000000)


@triton.jit
def _above(LOGITS, vocab, heat, peak, min_p, floor, trial, MASS: tl.constexpr, CHUNK: tl.constexpr):
    """[1]: the number, or with MASS the weight, of kept tokens at or above `trial`."""
    total = tl.zeros([1], dtype=tl.float32)
    for first in range(0, vocab, CHUNK):
        scores = _scores(LOGITS, first, vocab, heat, CHUNK)
        weight = tl.exp(scores - peak)
        place = _ordered(scores)
        kept = (place >= trial) & (place >= floor) & (weight >= min_p)
        kept &= first + tl.arange(0, CHUNK) < vocab
        total += tl.sum(tl.where(kept, weight if MASS else 1.0, 0.0), 0)
    return total


@triton.jit
def _least(LOGITS, vocab, heat, peak, min_p, floor, most, MASS: tl.constexpr, CHUNK: tl.constexpr):
    """The largest number at or above which there are `most`; at least `floor`."""
    found = tl.full([1], 0, tl.uint32)
    for step in range(32):
        trial = found | (tl.full([1], 1, tl.uint32) << (31 - step))
        total = _above(LOGITS, vocab, heat, peak, min_p, floor, trial, MASS, CHUNK)
        found = tl.where(total >= most, trial, found)
    return tl.maximum(found, floor)
