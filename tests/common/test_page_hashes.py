"""A page's name stands for its tokens and all before it."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from sps2.common.page_hashes import common_pages, page_hashes, root

ROOT = root("model", "", "exact")
tokens = st.lists(st.integers(0, 2), max_size=20)


def hashes(ids: list[int], page: int = 3, parent: bytes = ROOT) -> tuple[bytes, ...]:
    return page_hashes(parent, struct.pack(f"<{len(ids)}i", *ids), page)


@given(tokens, tokens)
def test_names_are_equal_as_far_as_pages_are(a: list[int], b: list[int]) -> None:
    shared = 0
    while shared < min(len(a), len(b)) // 3 and a[: 3 * shared + 3] == b[: 3 * shared + 3]:
        shared += 1
    assert common_pages(hashes(a), hashes(b)) == shared
    assert not set(hashes(a)[shared:]) & set(hashes(b)[shared:])


def test_only_full_pages_have_names() -> None:
    assert [len(hashes(list(range(count)))) for count in (0, 2, 3, 5, 6)] == [0, 0, 1, 1, 2]


def test_a_chain_goes_on_from_its_last_name() -> None:
    ids = list(range(12))
    first = hashes(ids[:6])
    assert first + hashes(ids[6:], parent=first[-1]) == hashes(ids)


def test_settings_and_page_sizes_are_told_apart() -> None:
    ids = list(range(6))
    roots = [root("ab", "c"), root("a", "bc"), root("abc"), root("abc", "")]
    assert len({hashes(ids, parent=each) for each in roots}) == 4
    assert hashes(ids, 3)[1] != hashes(ids, 6)[0]
