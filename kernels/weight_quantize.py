"""Makes weights of 4 or 8 bits: scale * code + minimum, with a scale and a minimum per 32 inputs.

The groups are the same as in GGUF's Q4_1, so that weights converted from Q4_1, Q4_0 and Q4_K get
their original codes back.
"""

from typing import Literal

import torch
from torch import Tensor

from sps2.kernels.weight_forms import BESIDE, FORMS, GROUP, Form, Parts, QuantisedWeight, packed

Bits = Literal[4, 8]

MADE: dict[Bits, Form] = {4: FORMS["Q4_1"], 8: FORMS["int8"]}

STEPS: dict[Bits, tuple[int, ...]] = {4: (15, 16, 14, 13, 12, 11, 10, 9, 8), 8: (255,)}
"""Numbers of steps that are tried for a group's range: a group of Q4_0 need not use all codes, and
an outlier is better cut off."""

PIECE = 1 << 20
"""Weights that are quantised at a time, so that they fit into the caches."""


def quantise(weight: Tensor, bits: Bits) -> QuantisedWeight:
    """Quantise a weight to the nearest one in `bits` bits.

    Args:
        weight: [outputs, inputs], inputs a multiple of GROUP.

    Raises:
        ValueError: a value is not finite, or beyond float16.
    """
    outputs, inputs = weight.shape
    rows = max(1, PIECE // (BESIDE * inputs)) * BESIDE
    pieces = [
        packed(MADE[bits], _fitted(part.float().unflatten(1, (-1, GROUP)), bits)).blocks
        for part in weight.split(rows)
    ]
    return QuantisedWeight(torch.cat(pieces), outputs, MADE[bits])


def _fitted(x: Tensor, bits: Bits) -> Parts:
    """The closest codes, scales and minimums. x: [outputs, groups, GROUP]."""
    low, high = x.aminmax(dim=-1, keepdim=True)
    top = 2**bits - 1
    mean = x.mean(-1, keepdim=True)
    best, scale, minimum = torch.full_like(low, -1.0), torch.zeros_like(low), low.clone()
    for steps in STEPS[bits]:
        codes = _codes(x, low, (high - low) / steps, top)
        middle = codes.mean(-1, keepdim=True)
        apart = (codes - middle).square_().sum(-1, keepdim=True)
        along = ((codes - middle) * x).sum(-1, keepdim=True)
        slope = torch.where(apart > 0, along / apart, 0)  # least squares, for these codes
        better = slope * along > best * (1 + 1e-6)
        best = torch.where(better, slope * along, best)
        scale = torch.where(better, slope, scale)
        minimum = torch.where(better, mean - slope * middle, minimum)
    scale, minimum = scale.half(), minimum.half()
    if not all(each.isfinite().all() for each in (low, high, scale, minimum)):
        raise ValueError("a weight is not finite, or beyond float16")
    codes = _codes(x, minimum.float(), scale.float(), top)
    return Parts(codes.to(torch.uint8).flatten(1), scale.squeeze(-1), minimum.squeeze(-1))


def _codes(x: Tensor, minimum: Tensor, scale: Tensor, top: int) -> Tensor:
    return ((x - minimum) / torch.where(scale > 0, scale, 1)).round_().clamp_(0, top)
