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
    kinds = (torch.float32, torch.float32, torch.int32, torch.float32, torch.float64)
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


@triton.jit(do_not_specialize=["logits_row", "vocab"])
def _sample(
    LOGITS, TEMPERATURE, MIN_P, TOP_K, TOP_P, DRAWS, TOKENS,
    logits_row, vocab, CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    LOGITS += row * logits_row
    temperature = tl.load(TEMPERATURE + row)
    peak, best = float("-inf"), 0
    for first in range(0, vocab, CHUNK):
        at = first + tl.arange(0, CHUNK)
        logits = tl.load(LOGITS + at, mask=at < vocab, other=float("-inf"))
        here = tl.max(logits, 0)
        if here > peak:
            peak = here
            best = tl.min(tl.where(logits == here, at, vocab), 0)
    token = best
    if temperature > 0:
        token = _drawn(
            LOGITS, vocab, temperature, peak,
            tl.load(MIN_P + row), tl.load(TOP_K + row), tl.load(TOP_P + row),
            tl.load(DRAWS + row), best, CHUNK,
        )  # fmt: skip
    tl.store(TOKENS + row, token)


@triton.jit
def _drawn(LOGITS, vocab, heat, peak, min_p, top_k, top_p, draw, best, CHUNK: tl.constexpr):
    floor = tl.full([1], 0, tl.uint32)
    ties = tl.full([1], 0.0, tl.float32) + vocab
    if (top_k > 0) & (top_k < vocab):
        most = top_k.to(tl.float32)
        floor = _least(LOGITS, vocab, heat, peak, min_p, floor, most, False, CHUNK)
    if top_p < 1:
        mass = _above(LOGITS, vocab, heat, peak, min_p, floor, floor, True, CHUNK)
        most = tl.maximum(top_p * tl.sum(mass, 0), 1e-30)  # the best always
        floor = _least(LOGITS, vocab, heat, peak, min_p, floor, most, True, CHUNK)
        # of the least likely ones, which are equally likely, only the first are needed
        more = _above(LOGITS, vocab, heat, peak, min_p, floor, floor + 1, True, CHUNK)
        each = tl.exp(_score_of(floor))
        ties = tl.ceil((most - more) / tl.maximum(each, 1e-30) * 0.999999)

    total = tl.zeros([1], dtype=tl.float32)
    before = tl.zeros([1], dtype=tl.float32)
    for first in range(0, vocab, CHUNK):
        weight, equal = _kept(LOGITS, first, vocab, heat, peak, min_p, floor, ties, before, CHUNK)
        total += tl.sum(weight, 0)
        before += equal

    goal = (total.to(tl.float64) * draw).to(tl.float32)
    token, last = vocab, best
    before = tl.zeros([1], dtype=tl.float32)
    passed = tl.zeros([1], dtype=tl.float32)
    for first in range(0, vocab, CHUNK):
        weight, equal = _kept(LOGITS, first, vocab, heat, peak, min_p, floor, ties, before, CHUNK)
        at = first + tl.arange(0, CHUNK)
        ends = passed + tl.cumsum(weight, 0)
        token = tl.minimum(token, tl.min(tl.where((ends > goal) & (weight > 0), at, vocab), 0))
        last = tl.where(tl.sum(weight, 0) > 0, tl.max(tl.where(weight > 0, at, 0), 0), last)
        passed += tl.sum(weight, 0)
        before += equal
    return tl.where(token < vocab, token, last)  # by rounding, none may reach the goal


@triton.jit
def _kept(LOGITS, first, vocab, heat, peak, min_p, floor, ties, before, CHUNK: tl.constexpr):
    """Weights of a chunk's tokens, 0 of excluded ones; and how many have the lowest kept score.

    before: how many of these the chunks before have; `ties` of all are kept.
    """
    scores = _scores(LOGITS, first, vocab, heat, peak, CHUNK)
    weight = tl.exp(scores)
    place = _ordered(scores)
    there = (first + tl.arange(0, CHUNK) < vocab) & (weight >= min_p)
    equal = tl.where(there & (place == floor), 1.0, 0.0)
    number = before + tl.cumsum(equal, 0)
    kept = there & ((place > floor) | ((place == floor) & (number <= ties)))
    return tl.where(kept, weight, 0.0), tl.sum(equal, 0)


@triton.jit
def _scores(LOGITS, first, vocab, heat, peak, CHUNK: tl.constexpr):
    at = first + tl.arange(0, CHUNK)
    logits = tl.load(LOGITS + at, mask=at < vocab, other=float("-inf"))
    return tl.div_rn(logits - peak, tl.full([CHUNK], 1.0, tl.float32) * heat)


@triton.jit
def _ordered(x):
    """Floats as unsigned integers in the same order."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 != 0, ~bits, bits | 0x80000000)


@triton.jit
def _score_of(place):
    """The float that `_ordered` made an unsigned integer of."""
    bits = tl.where(place >> 31 != 0, place & 0x7FFFFFFF, ~place)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _above(LOGITS, vocab, heat, peak, min_p, floor, trial, MASS: tl.constexpr, CHUNK: tl.constexpr):
    """[1]: the number, or with MASS the weight, of kept tokens at or above `trial`."""
    total = tl.zeros([1], dtype=tl.float32)
    for first in range(0, vocab, CHUNK):
        scores = _scores(LOGITS, first, vocab, heat, peak, CHUNK)
        weight = tl.exp(scores)
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
