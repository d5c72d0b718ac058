"""Weights in 4 or 8 bits: scale * code + minimum, with a scale and a minimum per 32 inputs.

The groups are the same as in GGUF's Q4_1, so that weights converted from Q4_1, Q4_0 and Q4_K get
their original codes back. Sixteen outputs are stored side by side: see `QuantisedWeight`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sps2.kernels.native import weights as native

GROUP, BESIDE = native.GROUP, native.BESIDE
"""Inputs and outputs of a block."""

Bits = Literal[4, 8]

STEPS: dict[Bits, tuple[int, ...]] = {4: (15, 16, 14, 13, 12, 11, 10, 9, 8), 8: (255,)}
"""Numbers of steps that are tried for a group's range: a group of Q4_0 need not use all codes, and
an outlier is better cut off."""

PIECE = 1 << 20
"""Weights that are quantised at a time, so that they fit into the caches."""


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """A weight [outputs, inputs].

    blocks: [ceil(outputs / BESIDE), inputs / GROUP, 64 + 64 * bits] uint8. Each has scales and
        minimums of BESIDE outputs in float16, then `bits` times a word of 32 bits for each of
        them: the codes of as many consecutive inputs as fit, those of even inputs in its low half.
    """

    blocks: Tensor
    outputs: int

    @property
    def bits(self) -> Bits:
        return 4 if self.blocks.shape[-1] == native.block_bytes(4) else 8

    @property
    def shape(self) -> tuple[int, int]:
        return self.outputs, self.blocks.shape[1] * GROUP

    def rows(self, start: int, stop: int) -> "QuantisedWeight":
        """The outputs from `start` to `stop`, whole blocks, as a view."""
        assert start % BESIDE == stop % BESIDE == 0 or stop == self.outputs
        return QuantisedWeight(self.blocks[start // BESIDE : -(-stop // BESIDE)], stop - start)

    def columns(self, start: int, stop: int) -> "QuantisedWeight":
        """The inputs from `start` to `stop`, whole groups, as a copy."""
        assert start % GROUP == stop % GROUP == 0
        part = self.blocks[:, start // GROUP : stop // GROUP]
        return QuantisedWeight(part.contiguous(), self.outputs)

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The dequantised weight: [outputs, inputs], stored inputs first."""
        if native.serves(self.blocks, dtype):
            return native.restore(self.blocks, dtype).t()[: self.outputs]
        codes, scale, minimum = _unpacked(self.blocks, self.bits)
        values = torch.addcmul(minimum.float(), codes.float(), scale.float()).to(dtype)
        return values.flatten(0, 1).t()[: self.outputs]


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
        _packed(*_fitted(part.float().unflatten(1, (-1, GROUP)), bits), bits)
        for part in weight.split(rows)
    ]
    return QuantisedWeight(torch.cat(pieces), outputs)


def _fitted(x: Tensor, bits: Bits) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [outputs, groups, GROUP] uint8, scales and minimums [outputs, groups] float16."""
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
    return codes.to(torch.uint8), scale.squeeze(-1), minimum.squeeze(-1)


def _codes(x: Tensor, minimum: Tensor, scale: Tensor, top: int) -> Tensor:
    return ((x - minimum) / torch.where(scale > 0, scale, 1)).round_().clamp_(0, top)


def _packed(codes: Tensor, scale: Tensor, minimum: Tensor, bits: Bits) -> Tensor:
    """The blocks of `QuantisedWeight`; zero outputs fill the last block."""
    codes, scale, minimum = map(_filled, (codes, scale, minimum))
    blocks, groups = codes.shape[0], codes.shape[2]
    header = torch.stack((scale, minimum), 1).movedim(-1, 1)  # [blocks, groups, 2, BESIDE]
    pairs = codes.unflatten(-1, (bits, -1, 2)).permute(0, 2, 3, 1, 5, 4)
    places = pairs.reshape(blocks, groups, bits * BESIDE, -1)  # of each word
    if bits == 4:
        places = places[..., ::2] | places[..., 1::2] << 4
    parts = (header.contiguous().view(torch.uint8), places)
    return torch.cat([part.reshape(blocks, groups, -1) for part in parts], -1)


def _filled(x: Tensor) -> Tensor:
    """[outputs, ...] -> [blocks, BESIDE, ...]."""
    rest = -len(x) % BESIDE
    return torch.cat((x, x.new_zeros(rest, *x.shape[1:]))).view(-1, BESIDE, *x.shape[1:])


def _unpacked(blocks: Tensor, bits: Bits) -> Iterable[Tensor]:
    """Codes, scales and minimums: [groups, GROUP or 1, outputs] each."""
    header, places = blocks.split((native.HEADER, blocks.shape[-1] - native.HEADER), -1)
    both = header.contiguous().view(torch.float16).unflatten(-1, (2, 1, BESIDE))
    places = places.unflatten(-1, (bits, BESIDE, -1))
    if bits == 4:
        places = torch.stack((places & 15, places >> 4), -1).flatten(-2)
    pairs = places.unflatten(-1, (2, -1)).permute(0, 1, 2, 5, 4, 3)
    codes = pairs.reshape(*blocks.shape[:2], GROUP, BESIDE)
    return (x.movedim(0, 2).flatten(2) for x in (codes, both[:, :, 0], both[:, :, 1]))
