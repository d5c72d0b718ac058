"""Rows that share keys read them once, and get what they would get alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sps2.kernels import PagedRows, Run, State, native, paged_attention, relay
from sps2.kernels.kv_quantize import quantise_rows

PAGE = 32


def test_one_system_prompt_is_read_once() -> None:
    runs = [[Run(0, 0, 4000), Run(4000 + 128 * row, 4000, 100)] for row in range(8)]
    rows = PagedRows(runs, [4099] * 8)
    assert (rows.keys, rows.keys_read) == (8 * 4100, 4000 + 8 * 100)


def test_runs_that_go_on_are_cut_between_blocks() -> None:
    """The first request computed the prefix: its own pages follow it in the pool."""
    runs = [[Run(0, 0, 1100)], [Run(0, 0, 1000), Run(2000, 1000, 50)]]
    shared, own = relay.parts_of(runs, [1099, 1049])
    assert shared == [relay.Part([0, 1], [Run(0, 0, 960)])]
    assert own == [
        relay.Part([0], [Run(960, 960, 140)]),
        relay.Part([1], [Run(960, 960, 40), Run(2000, 1000, 50)]),
    ]


def test_rows_that_share_little_with_all_share_more_with_some() -> None:
    hello = Run(0, 0, PAGE)
    ends = [[Run(1000, PAGE, 500)], [Run(1000, PAGE, 500)], [Run(2000, PAGE, 500)]]
    levels = relay.parts_of([[hello, *end] for end in ends], [531] * 3)
    assert levels == [
        [relay.Part([0, 1], [hello, *ends[0]]), relay.Part([2], [hello, *ends[2]])],
        [relay.Part([0], []), relay.Part([1], [])],
    ]


def test_what_one_of_them_does_not_see_is_not_shared() -> None:
    levels = relay.parts_of([[Run(0, 0, 500)], [Run(0, 0, 500)]], [199, 499])
    assert levels[0] == [relay.Part([0, 1], [Run(0, 0, 192)])]
    assert relay.parts_of([[Run(0, 0, 500)]] * 2, [9, 499]) == relay.alone([[Run(0, 0, 500)]] * 2)


def sequences(shape: list[tuple[int, int]], lengths: list[int]) -> tuple[list[list[Run]], int]:
    """Pages of rows, each of which begins with some pages of a row before it; slots in all."""
    tables: list[list[int]] = []
    taken = 0
    for (parent, common), length in zip(shape, lengths, strict=False):
        pages = -(-length // PAGE)
        shared = tables[parent % len(tables)][: min(common, (length - 1) // PAGE)] if tables else []
        own = range(taken, taken + pages - len(shared))
        taken += len(own)
        tables.append([*shared, *own])
    runs: list[list[Run]] = []
    for table, length in zip(tables, lengths, strict=False):
        runs.append([])
        for number, page in enumerate(table):
            tokens = min(PAGE, length - number * PAGE)
            last = runs[-1][-1] if runs[-1] else Run(-1, 0, 0)
            if last.slot + last.tokens == page * PAGE:
                runs[-1][-1] = last._replace(tokens=last.tokens + tokens)
            else:
                runs[-1].append(Run(page * PAGE, number * PAGE, tokens))
    return runs, taken * PAGE


@given(
    shape=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 12)), min_size=1, max_size=9),
    lengths=st.lists(st.integers(1, 500), min_size=9, max_size=9),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 6),
    dim=st.sampled_from([16, 64, 80, 128]),
    window=st.sampled_from([None, 100, 600]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    eight_bits=st.booleans(),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_sharing_changes_nothing(
    shape: list[tuple[int, int]],
    lengths: list[int],
    kv_heads: int,
    group: int,
    dim: int,
    window: int | None,
    dtype: torch.dtype,
    eight_bits: bool,
    threads: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    runs, slots = sequences(shape, lengths)
    positions = [sum(run.tokens for run in own) - 1 for own in runs]
    pool = torch.randn(2, kv_heads, slots, dim).transpose(1, 2)
    scales = None
    if eight_bits:
        (k, k_scale), (v, v_scale) = (quantise_rows(each, torch.float32) for each in pool)
        scales = k_scale.T.contiguous().T, v_scale.T.contiguous().T
    else:
        k, v = pool.to(dtype)
    q = (torch.randn(len(runs), kv_heads * group, dim) * 2).to(dtype)

    def attend(first: int, stop: int) -> State:
        rows = PagedRows(runs[first:stop], positions[first:stop])
        return paged_attention(q[first:stop], k, v, rows, window=window, scales=scales)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = attend(0, len(runs))
        alone = [attend(row, row + 1) for row in range(len(runs))]
    finally:
        torch.set_num_threads(before)
    out, lse = (torch.cat(each) for each in zip(*alone, strict=True))
    if native.level:
        assert torch.equal(together.out, out)
        assert torch.equal(together.lse, lse)
    else:
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert_close(together.out, out, atol=tolerance, rtol=tolerance)
        assert_close(together.lse, lse, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_heads_than_a_tile_has(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 1500, 2, 64).to(dtype)
    q = torch.randn(20, 14, 64).to(dtype)
    runs = [[Run(0, 0, 700), Run(700 + 40 * row, 700, 1 + row)] for row in range(20)]
    at = [700 + row for row in range(20)]
    got = paged_attention(q, k, v, PagedRows(runs, at))
    for row in range(20):
        want = paged_attention(q[row : row + 1], k, v, PagedRows(runs[row : row + 1], [at[row]]))
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert_close(got.out[row], want.out[0], atol=tolerance, rtol=tolerance)
