"""States merge on a GPU as they do on a CPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.kernels import State
from sps2.kernels.gpu import merge
from sps2.kernels.merge import merge_many

from .close import DTYPES, near_state


def random_state(tokens: int, heads: int, dim: int, dtype: torch.dtype) -> State:
    blind = torch.rand(tokens, heads) < 0.3
    out = torch.randn(tokens, heads, dim).masked_fill(blind[..., None], 0)
    return State(out.to(dtype), (torch.randn(tokens, heads) * 40).masked_fill(blind, -torch.inf))


@given(
    tokens=st.integers(0, 9),
    heads=st.integers(1, 5),
    dim=st.sampled_from([4, 64, 80]),
    count=st.integers(2, 4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
@settings(max_examples=20, deadline=None)
def test_it_is_the_merge(
    tokens: int, heads: int, dim: int, count: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    states = [random_state(tokens, heads, dim, dtype) for _ in range(count)]
    near_state(merge.merge_many(states), merge_many(states), torch.float32)


def test_far_apart_and_blind() -> None:
    far = State(torch.ones(1, 1, 4), torch.full((1, 1), 1e4))
    near = State(torch.zeros(1, 1, 4), torch.full((1, 1), -1e4))
    blind = State(torch.zeros(1, 1, 4), torch.full((1, 1), -torch.inf))
    near_state(merge.merge_many([near, far, blind]), far, torch.float32)
    near_state(merge.merge_many([blind, blind]), blind, torch.float32)


def test_bad_input_is_named() -> None:
    state = State(torch.zeros(2, 3, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"states\[1\]\.out has shape"):
        merge.merge_many([state, State(state.out[:1], state.lse)])
    with pytest.raises(ValueError, match=r"states\[1\]\.lse is float64"):
        merge.merge_many([state, State(state.out, state.lse.double())])
