"""Rotary embedding is transformers', for every scaling."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from sps2.common.model.config import Rope
from sps2.common.model.rope import Rotary, frequencies
from sps2.kernels.rows import rotate

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 8192},
    YARN,
    YARN | {"attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0},
    YARN | {"mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False},
    YARN | {"factor": 1.0},
]


def theirs(scaling: dict[str, Any], theta: float, head_dim: int) -> LlamaRotaryEmbedding:
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=32768,
        rope_parameters=scaling | {"rope_theta": theta},
    )
    return LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("theta", "head_dim"), [(1e4, 64), (1e6, 128), (5e5, 10)])
def test_frequencies(scaling: dict[str, Any], theta: float, head_dim: int) -> None:
    expected = theirs(scaling, theta, head_dim)
    found, amplitude = frequencies(Rope(rope_theta=theta, **scaling), head_dim)
    torch.testing.assert_close(found, expected.inv_freq, atol=0, rtol=1e-6)
    assert amplitude == pytest.approx(expected.attention_scaling, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaling", SCALINGS[:4])
def test_rotation(scaling: dict[str, Any], dtype: torch.dtype) -> None:
    positions = torch.tensor([0, 31_000, 5, 4097])
    q = torch.randn(4, 3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    cosines, sines = theirs(scaling, 1e4, 64)(q, positions[None])
    expected, _ = apply_rotary_pos_emb(q[None], q[None], cosines, sines, unsqueeze_dim=2)

    table = Rotary(Rope(**scaling), 64).table(positions, dtype)
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(rotate(q, table), expected[0], atol=rounding, rtol=rounding)
