"""A page's name stands for its tokens and all before it."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from sps2.common.prefix import common_pages, page_names, root

ROOT = root("model", "", "exact")
tokens = st.lists(st.integers(0, 2), max_size=20)


def names(ids: list[int], page: int = 3, parent: bytes = ROOT) -> tuple[bytes, ...]:
    return page_names(parent, struct.pack(f"<{len(ids)}i", *ids), page)


@given(tokens, tokens)
def test_names_are_equal_as_far_as_pages_are(a: list[int], b: list[int]) -> None:
    shared = 0
    while shared < min(len(a), len(b)) // 3 and a[: 3 * shared + 3] == b[: 3 * shared + 3]:
        shared += 1
    assert common_pages(names(a), names(b)) == shared
    assert not set(names(a)[shared:]) & set(names(b)[shared:])


def test_only_full_pages_have_names() -> None:
    assert [len(names(list(range(count)))) for count in (0, 2, 3, 5, 6)] == [0, 0, 1, 1, 2]


def test_a_chain_goes_on_from_its_last_name() -> None:
    ids = list(range(12))
    first = names(ids[:6])
    assert first + names(ids[6:], parent=first[-1]) == names(ids)


def test_settings_and_page_sizes_are_told_apart() -> None:
    ids = list(range(6))
    roots = [root("ab", "c"), root("a", "bc"), root("abc"), root("abc", "")]
    assert len({names(ids, parent=each) for each in roots}) == 4
    assert names(ids, 3)[1] != names(ids, 6)[0]
