"""Scores of probes on a GPU are those of the CPU; a CPU's scores are tested against softmax."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.kernels import csa_scores as on_cpu
from sps2.kernels.contracts import BLOCK
from sps2.kernels.gpu import csa_scores

from .close import DTYPES, near


@given(
    probes=st.integers(0, 9),
    tokens=st.integers(1, 300),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 8),
    dim=st.sampled_from([16, 64, 80, 96, 128, 256]),
    own=st.booleans(),
    size=st.sampled_from([1.0, 12.0]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15, deadline=None)
def test_shares_of_blocks_and_sums(
    probes: int,
    tokens: int,
    kv_heads: int,
    group: int,
    dim: int,
    own: bool,
    size: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    q = (torch.randn(probes, kv_heads * group, dim) * size).to(dtype)
    k = torch.randn(kv_heads, tokens, dim).to(dtype).transpose(0, 1)
    positions = torch.randint(0, tokens, (probes,)) if own else None
    weight, peak = csa_scores.score(q, k, dim**-0.5, positions)
    shape = (kv_heads, probes, group)
    got = on_cpu.Scores(weight.reshape(*shape, -(-tokens // BLOCK)), peak.view(shape))
    want = on_cpu.score(q.float(), k.float(), dim**-0.5, positions)
    near(got.lse, want.lse, dtype, size)
    near(got.mass(want.lse), want.mass(want.lse), dtype, size)


def test_a_probe_before_all_keys_has_no_say() -> None:
    scores = csa_scores.score(
        torch.randn(2, 1, 64), torch.randn(70, 1, 64), 0.1, torch.tensor([-1, 69])
    )
    got = on_cpu.Scores(scores[0].reshape(1, 2, 1, 2), scores[1].view(1, 2, 1))
    assert got.lse[0].isinf().all()
    assert got.lse[1].isfinite().all()
    assert not bool(got.weight[:, 0].any())


def test_bad_input_is_named() -> None:
    q, k = torch.zeros(2, 4, 64), torch.zeros(70, 2, 64)
    with pytest.raises(ValueError, match="positions has shape"):
        csa_scores.score(q, k, 0.1, torch.zeros(3))
    with pytest.raises(ValueError, match="k has 2 heads"):
        csa_scores.score(q[:, :3], k, 0.1, None)
