"""The GPU's decode attention: pages in any order, split anywhere, agree with the definition."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.kernels import PagedRows, Run, State
from sps2.kernels.gpu import decode
from sps2.kernels.quantize import quantise_rows, restore_rows
from sps2.kernels.reference import reference_attention

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
@settings(max_examples=25, deadline=None)
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
    pages = [-(-length // page) for length in lengths]
    order = torch.randperm(sum(pages)).tolist()
    pool = torch.randn(2, kv_heads, sum(pages) * page, dim).to(compute).transpose(1, 2)
    q = (torch.randn(len(lengths), kv_heads * group, dim) * size).to(compute)
    k, v, scales = *pool, None
    if dtype == torch.int8:
        (k, k_scale), (v, v_scale) = (quantise_rows(x, torch.float32) for x in pool)
        scales = k_scale, v_scale
        pool = torch.stack([restore_rows(k, k_scale, compute), restore_rows(v, v_scale, compute)])

    runs, positions, wanted = [], [], []
    for row, length in enumerate(lengths):
        own = [order.pop() for _ in range(pages[row])]
        runs.append(
            [
                Run(at * page, start + n * page, min(page, length - n * page))
                for n, at in enumerate(own)
            ]
        )
        positions.append(max(0, start + length + ahead))
        slots = [run.slot + offset for run in runs[-1] for offset in range(run.tokens)]
        at, places = torch.tensor(positions[-1:]), torch.arange(start, start + length)
        mine = q[row : row + 1], pool[0][slots], pool[1][slots]
        wanted.append(reference_attention(*mine, at, places, window=window))

    got = decode.attend(q, k, v, PagedRows(runs, positions), dim**-0.5, window, scales, least)
    assert got.out.shape == q.shape
    for row, want in enumerate(wanted):
        near_state(State(got.out[row : row + 1], got.lse[row : row + 1]), want, compute, size)


def test_a_plan_is_made_once_and_covers_every_key_once() -> None:
    runs = [[Run(0, 0, 1000)], [], [Run(1000, 0, 130), Run(1500, 130, 70)]]
    rows = PagedRows(runs, [899, 5, 1000])
    segments, pieces, offsets, longest = decode.plan(
        rows, 1600, None, 1, torch.device("cpu"), decode.LEAST
    )
    seen = [slot for first, count in segments.tolist() for slot in range(first, first + count)]
    assert sorted(seen) == [*range(900), *range(1000, 1130), *range(1500, 1570)]
    assert offsets.tolist() == [0, 4, 4, 5]
    assert pieces[:, 0].tolist() == [0, 0, 0, 0, 2]
    assert longest < 300

    q, pool = torch.randn(3, 2, 16), torch.randn(1600, 1, 16)
    first = decode.attend(q, pool, pool, rows, 0.25)
    made = decode._plans[rows]
    again = decode.attend(q, pool, pool, rows, 0.25)
    assert len(made) == 1
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
