"""The GPU's attention of many queries agrees with the definition."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime.interpreter import GridExecutor

from sps2.kernels import Run, State, empty_state
from sps2.kernels.gpu import flash
from sps2.kernels.gpu.tiles import Tile
from sps2.kernels.kv_quantize import quantise_rows, restore_rows
from sps2.kernels.reference import reference_attention

from .close import DTYPES, near, near_state

SMALL = Tile(16, 16, 4, 2)
"""So that few rows are several tiles."""


def runs_of(lengths: list[int], start: int, gap: int, order: list[int]) -> list[Run]:
    """Consecutive runs of positions with a gap between, whose slots lie in another order."""
    slots, slot = {}, 0
    for number in sorted(range(len(lengths)), key=lambda n: order[n % len(order)]):
        slots[number] = slot
        slot += lengths[number]
    found = []
    for number, length in enumerate(lengths):
        found.append(Run(slots[number], start, length))
        start += length + gap
    return found


def rows_of(runs: list[Run]) -> tuple[Tensor, Tensor]:
    """Slots and positions of the tokens of runs."""
    slots = [torch.arange(run.slot, run.slot + run.tokens) for run in runs]
    at = [torch.arange(run.start, run.start + run.tokens) for run in runs]
    none = torch.empty(0, dtype=torch.int64)
    return torch.cat([none, *slots]), torch.cat([none, *at])


def definition(
    q: Tensor, k: Tensor, v: Tensor, queries: list[Run], keys: list[Run], **options: Any
) -> State:
    slots, places = rows_of(keys)
    return reference_attention(q, k[slots], v[slots], rows_of(queries)[1], places, **options)


@given(
    asked=st.lists(st.integers(0, 25), min_size=1, max_size=3),
    given_=st.lists(st.integers(0, 30), min_size=0, max_size=3),
    start=st.integers(0, 60),
    gap=st.integers(0, 20),
    order=st.permutations([0, 1, 2]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 8),
    dim=st.sampled_from([16, 64, 80, 96, 128, 256]),
    window=st.one_of(st.none(), st.integers(1, 40)),
    dtype=st.sampled_from(DTYPES),
    held=st.booleans(),
    pieces=st.sampled_from([None, 3]),
    size=st.sampled_from([1.0, 12.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=10, deadline=None)
def test_runs_that_lie_anywhere(
    asked: list[int],
    given_: list[int],
    start: int,
    gap: int,
    order: list[int],
    kv_heads: int,
    group: int,
    dim: int,
    window: int | None,
    dtype: torch.dtype,
    held: bool,
    pieces: int | None,
    size: float,
    seed: int,
) -> None:
    """Keys in two calls that share a state; large scores; rows that see nothing; split keys."""
    torch.manual_seed(seed)
    queries, keys = runs_of(asked, start, gap, [0, 1, 2]), runs_of(given_, 5, 3, order)
    q = (torch.randn(sum(asked), kv_heads * group, dim) * size).to(dtype)
    pool = torch.randn(2, kv_heads, sum(given_) + 2, dim).to(dtype).transpose(1, 2)
    k, v = pool
    scale, state = dim**-0.5, empty_state(*q.shape) if held else None
    for part in (keys[:1], keys[1:]):
        state = flash.attend(
            q, k, v, [(queries, part)], scale, window, state, tile=SMALL, pieces=pieces
        )
    assert state is not None
    near_state(state, definition(q, k, v, queries, keys, window=window), dtype, size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tiles_of_the_table(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(150, heads, 64).to(dtype) for heads in (3, 1, 1))
    runs = [Run(0, 0, 150)]
    near_state(
        flash.attend(q, k, v, [(runs, runs)], 0.2),
        definition(q, k, v, runs, runs, scale=0.2),
        dtype,
    )


def test_several_sequences_at_once() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(40, 2, 64), torch.randn(60, 1, 64), torch.randn(60, 1, 64)
    parts = [
        ([Run(0, 3, 7)], [Run(0, 0, 10)]),
        ([Run(0, 0, 0)], []),
        ([Run(0, 9, 33)], [Run(10, 0, 50)]),
    ]
    got = flash.attend(q, k, v, parts, 0.125)
    near_state(State(got.out[:7], got.lse[:7]), definition(q[:7], k, v, *parts[0]), q.dtype)
    near_state(State(got.out[7:], got.lse[7:]), definition(q[7:], k, v, *parts[2]), q.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_in_eight_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q = torch.randn(20, 6, 80).to(dtype)
    pool = torch.empty(2, 2, 50, 80, dtype=torch.int8).transpose(1, 2)
    scales = torch.empty(2, 2, 50).transpose(1, 2)
    for side in range(2):
        pool[side], scales[side] = quantise_rows(torch.randn(50, 2, 80), torch.float32)
    k, v = (restore_rows(pool[side], scales[side], torch.float32) for side in range(2))
    parts = [Run(0, 20, 20)], [Run(25, 0, 25), Run(0, 25, 25)]
    got = flash.attend(q, *pool, [parts], 80**-0.5, scales=(scales[0], scales[1]), tile=SMALL)
    near_state(got, definition(q, k, v, *parts), dtype)


def test_few_queries_fill_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their heads are packed into one tile, and their keys are split; a given state is kept."""
    torch.manual_seed(0)
    launched: list[tuple[int, ...]] = []
    launch = GridExecutor.__call__

    def seen(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.fn.__name__ == "_flash":
            launched.append((*self.grid, kwargs["PACK"]))
        launch(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", seen)
    monkeypatch.setattr(flash, "processors", lambda device: 8)
    monkeypatch.setattr(flash, "LEAST", 50)
    q, k, v = torch.randn(5, 8, 16), torch.randn(300, 2, 16), torch.randn(300, 2, 16)
    queries, keys = [Run(0, 290, 5)], [Run(0, 0, 300)]
    state = empty_state(5, 8, 16)
    assert flash.attend(q, k, v, [(queries, keys)], 0.25, state=state) is state
    near_state(state, definition(q, k, v, queries, keys), q.dtype)
    assert launched == [(6, 2, 4)]  # 300 keys are at most 6 pieces of 50; 2 KV heads

    few = [Run(0, 0, 60)]  # too few keys to split
    near_state(
        flash.attend(q, k, v, [(queries, few)], 0.25),
        definition(q, k, v, queries, few),
        q.dtype,
    )
    assert launched[1:] == [(1, 2, 4)]


def test_the_pieces_of_a_tile_are_what_it_sees() -> None:
    at = torch.tensor([50, 61])
    runs = [Run(100, 0, 40), Run(0, 40, 60)]
    found = flash._split(runs, at, 30, 3)
    assert [run for piece in found for run in piece] == [
        Run(121, 21, 13), Run(134, 34, 6), Run(0, 40, 8), Run(8, 48, 14)
    ]  # fmt: skip
    assert [sum(run.tokens for run in piece) for piece in found] == [13, 14, 14]
    assert flash._split([Run(0, 70, 5)], at, None, 2) == [[], []]


def test_what_lies_beyond_the_keys_is_not_read() -> None:
    """Pages that nobody wrote may hold NaN."""
    k = torch.full((64, 1, 64), torch.nan)
    k[3:8] = torch.randn(5, 1, 64)
    queries, keys = [Run(0, 0, 5)], [Run(3, 0, 5)]
    q = torch.randn(5, 1, 64)
    got = flash.attend(q, k, k, [(queries, keys)], 0.125)
    near(got.out, definition(q, k, k, queries, keys).out, q.dtype)


Q, K = torch.zeros(4, 4, 64), torch.zeros(8, 2, 64)
RUNS = [Run(0, 0, 4)]
SCALE = torch.ones(8, 2)


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("q has shape", {"q": Q[0]}),
        ("q is float64", {"q": Q.double()}),
        ("q has head dim 60", {"q": Q[..., :60]}),
        ("q has head dim 264", {"q": torch.zeros(4, 4, 264)}),
        ("q must be contiguous", {"q": Q.mT.contiguous().mT}),
        ("k has shape", {"k": K[..., :32]}),
        ("k is bfloat16", {"k": K.bfloat16()}),
        ("k has 3 heads", {"k": torch.zeros(8, 3, 64), "v": torch.zeros(8, 3, 64)}),
        ("v has shape", {"v": K[:7]}),
        ("v is on meta", {"v": K.to("meta")}),
        ("k is float32, not int8", {"scales": (SCALE, SCALE)}),
        ("queries cover 3 rows", {"parts": [([Run(0, 0, 3)], RUNS)]}),
        ("outside the 8 rows of k", {"parts": [(RUNS, [Run(5, 0, 4)])]}),
        ("scale is 0", {"scale": 0.0}),
        ("window is 0", {"window": 0}),
        ("state.lse has shape", {"state": State(Q, torch.zeros(4, 3))}),
        ("state.out is bfloat16", {"state": State(Q.bfloat16(), torch.zeros(4, 4))}),
    ],
)
def test_bad_input_is_named(named: str, changes: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"q": Q, "k": K, "v": K, "parts": [(RUNS, RUNS)], "scale": 0.1}
    with pytest.raises(ValueError, match=named.replace(".", r"\.")):
        flash.attend(**(usual | changes))
