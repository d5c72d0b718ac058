"""Quantises rows to 4 bits: rotated, scaled to unit variance, rounded to the levels of a table.

A Hadamard rotation spreads outliers over its channels, so that these are nearly Gaussian. Sources:
the rotation, QuaRot (arXiv 2404.00456); with a table for Gaussian numbers, TurboQuant (arXiv
2504.19874); the table, J. Max, "Quantizing for minimum distortion" (1960), table I.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

POSITIVE = (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326)
"""The upper half of the 16 levels that have the least mean squared error for Gaussian numbers."""
PER_OCTAVE = 8
"""Steps of the scale per factor of two; a byte covers factors from 2^-16 to 2^15.9."""
ONE = 128
"""The byte of a scale of 1."""


def quantise_rotated(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise rows of the last axis, which must be even, to 4 bits.

    Args:
        x: [.., dim], finite.

    Returns:
        [.., dim / 2] uint8, two numbers to a byte, and [..] uint8, the logarithm of the scale.
    """
    rows = x.float()
    size = torch.linalg.vector_norm(rows, dim=-1) / math.sqrt(x.shape[-1])
    scale = (size.log2() * PER_OCTAVE + ONE).round_().clamp_(0, 255).to(torch.uint8)
    _, edges = _table(x.device)
    turned = _rotated(rows) / _size_of(scale)[..., None]
    low, high = torch.bucketize(turned, edges, out_int32=True).to(torch.uint8).chunk(2, -1)
    return low | (high << 4), scale


def restore_rotated(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo `quantise_rotated`: [.., dim]; the relative error of a row is about 0.1."""
    levels, _ = _table(packed.device)
    numbers = torch.cat((packed & 15, packed >> 4), -1)
    return _rotated(levels[numbers.int()] * _size_of(scale)[..., None]).to(dtype)


def _size_of(scale: Tensor) -> Tensor:
    return ((scale.float() - ONE) / PER_OCTAVE).exp2_()


def _rotated(x: Tensor) -> Tensor:
    """The rotation, which is its own inverse: of groups of channels, if dim is no power of two."""
    matrix = _hadamard(x.shape[-1] & -x.shape[-1], x.device)
    turned: Tensor = x.unflatten(-1, (-1, len(matrix))) @ matrix
    return turned.flatten(-2)


@lru_cache
def _hadamard(size: int, device: torch.device) -> Tensor:
    """The symmetric orthogonal Hadamard matrix of a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return (matrix / math.sqrt(size)).to(device)


@lru_cache
def _table(device: torch.device) -> tuple[Tensor, Tensor]:
    """The 16 levels, and the 15 edges between them."""
    half = torch.tensor(POSITIVE)
    levels = torch.cat((-half.flip(0), half))
    return levels.to(device), ((levels[1:] + levels[:-1]) / 2).to(device)
