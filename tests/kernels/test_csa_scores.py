"""Scores of probes are what the definition says, whichever kernel computes them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sps2.kernels.contracts import BLOCK
from sps2.kernels.csa_scores import score


@given(
    probes=st.integers(1, 40),
    tokens=st.integers(1, 400),
    group=st.integers(1, 5),
    own=st.booleans(),
    size=st.sampled_from([1.0, 6.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_shares_of_blocks(
    probes: int, tokens: int, group: int, own: bool, size: float, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    q = (torch.randn(probes, 2 * group, 64) * size).to(dtype)
    k = torch.randn(tokens, 2, 64).to(dtype)
    positions = torch.randint(0, tokens, (probes,)) if own else None
    scores = score(q, k, 0.125, positions)

    wide = k.repeat_interleave(group, 1).float()
    exact = torch.einsum("phd,thd->pht", q.float(), wide) * 0.125
    if positions is not None:
        hidden = torch.arange(tokens) > positions[:, None]
        exact = exact.masked_fill(hidden[:, None], -torch.inf)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2 * size
    assert_close(scores.lse, exact.logsumexp(-1), atol=tolerance, rtol=tolerance)
    shares = torch.zeros(probes, 2 * group, -(-tokens // BLOCK) * BLOCK)
    shares[..., :tokens] = exact.softmax(-1)
    by_block = shares.unflatten(-1, (-1, BLOCK)).sum(-1).view(probes, 2, group, -1)
    got = scores.mass(scores.lse).transpose(0, 1)
    assert_close(got, by_block, atol=tolerance / 5, rtol=tolerance)


@pytest.mark.parametrize("rising", [True, False])
def test_scores_that_rise_or_fall_along_the_keys(rising: bool) -> None:
    """By hundreds of powers of two: what a block gave is taken back to the row's peak."""
    k = torch.linspace(-6, 6, 640).view(-1, 1, 1).expand(-1, 1, 64).contiguous()
    q = torch.ones(3, 1, 64) if rising else -torch.ones(3, 1, 64)
    scores = score(q, k, 1.0)
    exact = (q[:, 0] @ k[:, 0].T).softmax(-1).unflatten(-1, (-1, BLOCK)).sum(-1)
    assert_close(scores.mass(scores.lse)[0, :, 0], exact, atol=1e-5, rtol=1e-3)
