"""A tally counts as a Counter does."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from sps2.common.model.token_counts import Tally

ids = st.lists(st.integers(-2, 12))


@given(ids, ids)
def test_counts_are_those_of_a_counter(first: list[int], more: list[int]) -> None:
    tally = Tally(torch.tensor(first, dtype=torch.int64))
    for token in more:
        tally.add(token)
    found, counts = tally.within(10)
    expected = {token: count for token, count in Counter(first + more).items() if 0 <= token < 10}
    assert len(found) == len(expected)
    assert dict(zip(found.tolist(), counts.tolist(), strict=True)) == expected
