"""Every position is assigned exactly once, and evenly."""

from hypothesis import example, given
from hypothesis import strategies as st

from sps2.common.spans import (
    Span,
    consecutive,
    even_split,
    fits,
    paged_split,
    pages_for,
    within,
    zigzag,
)


@given(st.integers(0, 5000), st.integers(1, 8))
def test_zigzag_deals_every_position_once(tokens: int, ranks: int) -> None:
    assigned = [
        position for spans in zigzag(tokens, ranks) for span in spans for position in range(*span)
    ]
    assert sorted(assigned) == list(range(tokens))


@given(st.integers(64, 5000), st.integers(1, 8))
def test_zigzag_balances_causal_work(tokens: int, ranks: int) -> None:
    work = [
        sum(position + 1 for span in spans for position in range(*span))
        for spans in zigzag(tokens, ranks)
    ]
    assert max(work) - min(work) <= 3 * tokens


def test_the_last_position_is_at_rank_zero() -> None:
    assert zigzag(8, 2) == [(Span(0, 2), Span(6, 8)), (Span(2, 4), Span(4, 6))]


@given(st.integers(0, 5000), st.integers(1, 9))
def test_even_split_covers_and_differs_by_one(tokens: int, parts: int) -> None:
    spans = even_split(tokens, parts)
    assert [position for span in spans for position in range(*span)] == list(range(tokens))
    assert max(span.tokens for span in spans) - min(span.tokens for span in spans) <= 1


@given(
    st.integers(1, 5000), st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 64)
)
def test_paged_split_cuts_at_pages(tokens: int, weights: list[int], page_tokens: int) -> None:
    spans = paged_split(tokens, weights, page_tokens)
    assert [position for span in spans for position in range(*span)] == list(range(tokens))
    assert all(span.stop % page_tokens == 0 for span in spans if span.stop != tokens)


@given(
    st.integers(6, 5000),
    st.lists(st.integers(0, 2000), min_size=1, max_size=6),
    st.sampled_from([1, 64]),
)
@example(440, [128, 64, 128, 64, 64, 56], 64)
def test_spans_are_made_to_fit_and_no_more(tokens: int, room: list[int], align: int) -> None:
    if not fits(tokens, room, align) or tokens < len(room) * align:
        return
    even = consecutive(tokens, len(room), 0.01, align)
    spans = [span for (span,) in within(even, room, align)]
    assert [position for span in spans for position in range(*span)] == list(range(tokens))
    assert all(0 < span.tokens <= most for span, most in zip(spans, room, strict=True))
    assert all(span.start % align == 0 for span in spans)
    assert within(even, [5120] * len(room), align) == even


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_intersection(a: int, b: int, c: int, d: int) -> None:
    one, two = Span(min(a, b), max(a, b)), Span(min(c, d), max(c, d))
    assert set(range(*(one & two))) == set(range(*one)) & set(range(*two))


def test_pages_round_up() -> None:
    assert [pages_for(tokens, 16) for tokens in (0, 1, 16, 17)] == [0, 1, 1, 2]
