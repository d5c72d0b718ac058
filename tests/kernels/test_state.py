"""States merge like the softmax they stand for."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sps2.kernels import Run, State, attention, empty_state, merge, merge_many
from sps2.kernels.reference import reference_attention


def random_state(seed: int, tokens: int = 5, heads: int = 3, dim: int = 4) -> State:
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(tokens, heads, dim, generator=generator)
    lse = torch.randn(tokens, heads, generator=generator) * 20
    blind = torch.rand(tokens, heads, generator=generator) < 0.3
    return State(out.masked_fill(blind[..., None], 0), lse.masked_fill(blind, -torch.inf))


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_merging_is_associative_and_commutative(seed: int) -> None:
    a, b, c = (random_state(3 * seed + offset) for offset in range(3))
    left = merge(merge(a, b), c)
    assert_close(left, merge(a, merge(b, c)))
    assert_close(left, merge(merge(c, a), b))
    assert_close(left, merge_many([a, b, c]))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_an_empty_state_changes_nothing(seed: int) -> None:
    state = random_state(seed)
    empty = empty_state(5, 3, 4)
    assert_close(merge(state, empty), state)
    assert_close(merge(empty, state), state)
    both = merge(empty, empty)
    assert (both.out == 0).all()
    assert (both.lse == -torch.inf).all()


def test_states_over_parts_of_the_keys_merge_to_attention_over_all() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(40, 6, 16), torch.randn(40, 2, 16), torch.randn(40, 2, 16)
    parts = [
        attention(q, k, v, queries=[Run(0, 0, 40)], keys=[Run(a, a, b - a)])
        for a, b in ((30, 40), (0, 7), (7, 30))
    ]
    positions = torch.arange(40)
    expected = reference_attention(q, k, v, positions, positions)
    assert_close(merge_many(parts), expected, atol=1e-5, rtol=1e-5)


def test_merging_is_in_float32_and_keeps_far_apart_weights() -> None:
    near, far = random_state(1), random_state(2)
    near = State(near.out.bfloat16(), torch.full_like(near.lse, 1e4))
    far = State(far.out.bfloat16(), torch.full_like(far.lse, -1e4))
    merged = merge(far, near)
    assert merged.out.dtype == torch.float32
    assert_close(merged, State(near.out.float(), near.lse))


def test_one_state_is_its_own_merge() -> None:
    state = random_state(4)
    assert merge_many([state]) is state
