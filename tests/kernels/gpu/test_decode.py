"""The GPU's decode attention: pages in any order, split anywhere, agree with the definition."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.kernels import PagedRows, Run
from sps2.kernels.gpu import decode, pieces

from .batch import batch_of, defined, pool_of
from .close import DTYPES, near_state


@given(
    lengths=st.lists(st.integers(0, 60), max_size=3),
    start=st.integers(0, 20),
    ahead=st.integers(-30, 3),
    page=st.sampled_from([1, 4, 16, 64]),
    least=st.sampled_from([5, 16, 300]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 8),
    dim=st.sampled_from([16, 64, 80, 96, 128, 256]),
    window=st.one_of(st.none(), st.integers(1, 60)),
    dtype=st.sampled_from([*DTYPES, torch.int8]),
    size=st.sampled_from([1.0, 12.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12, deadline=None)
def test_pages_in_any_order_split_anywhere(
    lengths: list[int],
    start: int,
    ahead: int,
    page: int,
    least: int,
    kv_heads: int,
    group: int,
    dim: int,
    window: int | None,
    dtype: torch.dtype,
    size: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    compute = torch.float32 if dtype == torch.int8 else dtype
    batch = batch_of(lengths, page, start, ahead)
    pool, scales, whole = pool_of(batch.slots, kv_heads, dim, dtype)
    q = (torch.randn(len(lengths), kv_heads * group, dim) * size).to(compute)
    rows = PagedRows(batch.runs, batch.positions)
    got = decode.attend(q, *pool, rows, dim**-0.5, window, scales, least)
    assert got.out.shape == q.shape
    near_state(got, defined(q, whole, batch, window), compute, size)


@given(
    lengths=st.lists(st.integers(1, 90), min_size=2, max_size=4),
    common=st.integers(2, 3),
    page=st.sampled_from([32, 64]),
    least=st.sampled_from([40, 300]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 8),
    dim=st.sampled_from([16, 64, 80, 96, 128, 256]),
    window=st.sampled_from([None, 100, 600]),
    dtype=st.sampled_from([*DTYPES, torch.int8]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=8, deadline=None)
def test_what_rows_share_is_read_once(
    lengths: list[int],
    common: int,
    page: int,
    least: int,
    kv_heads: int,
    group: int,
    dim: int,
    window: int | None,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    compute = torch.float32 if dtype == torch.int8 else dtype
    lengths = [*lengths, *(common * page + length for length in lengths)]
    batch = batch_of(lengths, page, common=common)
    pool, scales, whole = pool_of(batch.slots, kv_heads, dim, dtype)
    q = torch.randn(len(lengths), kv_heads * group, dim).to(compute)
    rows = PagedRows(batch.runs, batch.positions)
    got = decode.attend(q, *pool, rows, dim**-0.5, window, scales, least)
    near_state(got, defined(q, whole, batch, window), compute)


def test_a_plan_of_rows_that_share() -> None:
    runs = [[Run(0, 0, 640), Run(1000 + 10 * row, 640, 7)] for row in range(5)]
    rows = PagedRows(runs, [646] * 5)
    made = pieces.cut(rows, 1600, None, 1, torch.device("cpu"), 100, 2)
    assert made.most == 2
    keys = made.segments[:, 1]
    by_row = torch.zeros(5, dtype=torch.int64)
    for first, count, begin, end in [*made.alone.tolist(), *made.shared.tolist()]:
        by_row[made.members[first : first + count, 0].long()] += keys[begin:end].sum()
    assert by_row.tolist() == [647] * 5
    assert sorted(made.members[:, 1].tolist()) == list(range(len(made.members)))
    for row, place in made.members.tolist():
        assert made.offsets[row] <= place < made.offsets[row + 1]
    read = sum(int(keys[b:e].sum()) for _, _, b, e in [*made.alone.tolist(), *made.shared.tolist()])
    assert read == 3 * 640 + 5 * 7  # 5 rows by twos


def test_a_plan_is_made_once_and_covers_every_key_once() -> None:
    runs = [[Run(0, 0, 1000)], [], [Run(1000, 0, 130), Run(1500, 130, 70)]]
    rows = PagedRows(runs, [899, 5, 1000])
    made = pieces.cut(rows, 1600, None, 1, torch.device("cpu"), pieces.LEAST, 16)
    segments, offsets = made.segments, made.offsets
    seen = [slot for first, count in segments.tolist() for slot in range(first, first + count)]
    assert sorted(seen) == [*range(900), *range(1000, 1130), *range(1500, 1570)]
    assert offsets.tolist() == [0, 4, 4, 5]
    assert made.members[:, 0].tolist() == [0, 0, 0, 0, 2]
    assert len(made.shared) == 0
    assert int(segments[:, 1].max()) < 300

    q, pool = torch.randn(3, 2, 16), torch.randn(1600, 1, 16)
    first = decode.attend(q, pool, pool, rows, 0.25)
    again = decode.attend(q, pool, pool, rows, 0.25)
    assert len(decode._plans[rows]) == 1
    assert torch.equal(first.out, again.out)


Q, POOL = torch.zeros(2, 4, 64), torch.zeros(32, 2, 64)


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("rows has 1 rows, q 2", {"rows": PagedRows([[Run(0, 0, 4)]], [3])}),
        ("outside the 32 slots", {"rows": PagedRows([[Run(30, 0, 4)], []], [3, 3])}),
        ("k is bfloat16", {"k_pool": POOL.bfloat16()}),
        ("v has shape", {"v_pool": POOL[:, :1]}),
        ("q has head dim 36", {"q": Q[..., :36]}),
    ],
)
def test_bad_input_is_named(named: str, changes: dict[str, Any]) -> None:
    rows = PagedRows([[Run(0, 0, 4)], []], [3, 3])
    usual: dict[str, Any] = {"q": Q, "k_pool": POOL, "v_pool": POOL, "rows": rows, "scale": 0.1}
    with pytest.raises(ValueError, match=named):
        decode.attend(**(usual | changes))
