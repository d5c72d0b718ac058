"""Truncation keeps what its definition keeps, whichever tokens are sorted for it."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sps2.kernels.sample import truncate


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """By the definition, with the whole vocabulary in order."""
    ordered, order = scores.softmax(-1).sort(descending=True, stable=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    outside[0] = False
    return scores.index_fill(0, order[outside], -torch.inf)


@given(
    vocab=st.sampled_from([1, 2, 50, 3000]),
    spread=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
    levels=st.sampled_from([1, 4, 1000]),
    top_p=st.sampled_from([0.0, 1e-9, 0.1, 0.5, 0.9, 0.95, 0.999999, 0.99999999]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_top_p_keeps_exactly_the_nucleus(
    vocab: int, spread: float, levels: int, top_p: float, seed: int
) -> None:
    scores = torch.randn(vocab, generator=torch.Generator().manual_seed(seed))
    scores = (scores * levels).round() / levels * spread  # with equals, where levels are few
    assert torch.equal(truncate(scores, 0, 0, top_p), nucleus(scores, top_p))


def test_of_equals_the_lowest_ids_are_in_the_nucleus() -> None:
    kept = truncate(torch.zeros(1000), 0, 0, 0.1).isfinite().nonzero()[:, 0]
    assert kept.tolist() == list(range(100))
