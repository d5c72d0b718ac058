"""Rotary position embedding, with every scaling that supported families use."""

import math

import torch
from torch import Tensor

from sps2.common.model.config import Rope


class Rotary:
    """Angles of one model's rotary embedding ("RoFormer", arXiv 2104.09864), as halves.

    Numerically as transformers: angles, cosines and sines in float32, then cast.
    """

    def __init__(self, rope: Rope, head_dim: int) -> None:
        self._frequencies, self._amplitude = frequencies(rope, head_dim)

    def table(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Factors for `rotate`.

        Args:
            positions: [tokens] int64, in any order.

        Returns:
            (cosines, signed sines), each [tokens, 1, head_dim].
        """
        self._frequencies = self._frequencies.to(positions.device)
        angles = positions[:, None].float() * self._frequencies
        cosines = angles.cos() * self._amplitude
        sines = angles.sin() * self._amplitude
        return (
            torch.cat((cosines, cosines), -1).to(dtype).unsqueeze(1),
            torch.cat((-sines, sines), -1).to(dtype).unsqueeze(1),
        )


def frequencies(rope: Rope, head_dim: int) -> tuple[Tensor, float]:
    """Inverse frequencies [head_dim / 2] in float32, and the amplitude of cosines and sines."""
    powers = rope.rope_theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.rope_type == "linear":
        return 1.0 / powers / rope.factor, 1.0
    if rope.rope_type == "llama3":
        return _llama3(1.0 / powers, rope), 1.0
    if rope.rope_type == "yarn":
        return _yarn(powers, rope, head_dim), _yarn_amplitude(rope)
    return 1.0 / powers, 1.0


def _llama3(inverse: Tensor, rope: Rope) -> Tensor:
    """Llama 3.1: slow frequencies are divided by `factor`, fast ones kept, blended in between."""
    trained, low, high = (
        rope.original_max_position_embeddings,
        rope.low_freq_factor,
        rope.high_freq_factor,
    )
    wavelengths = 2 * math.pi / inverse
    keep = (trained / wavelengths - low) / (high - low)
    blended = (1 - keep) * inverse / rope.factor + keep * inverse
    scaled = torch.where(wavelengths > trained / low, inverse / rope.factor, blended)
    return torch.where(wavelengths < trained / high, inverse, scaled)


def _yarn(powers: Tensor, rope: Rope, head_dim: int) -> Tensor:
    """YaRN (arXiv 2309.00071): a ramp over dimensions from extrapolation to interpolation."""

    def dimension_of(rotations: float) -> float:
        trained = rope.original_max_position_embeddings
        ratio = math.log(trained / (rotations * 2 * math.pi)) / math.log(rope.rope_theta)
        return head_dim * ratio / 2

    low, high = dimension_of(rope.beta_fast or 32), dimension_of(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    extrapolated = 1 - ramp
    return 1.0 / (rope.factor * powers) * (1 - extrapolated) + 1.0 / powers * extrapolated


def _yarn_amplitude(rope: Rope) -> float:
    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return grown(rope.mscale) / grown(rope.mscale_all_dim)
    return grown(1.0)
