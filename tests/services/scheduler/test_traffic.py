"""Sums over ranks are those of the transfers between every two of them."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sps2.common.config import Sharing
from sps2.common.errors import Invalid
from sps2.common.messages import KvTransferDtype, Method, PrefillOptions, Scheme, Selection
from sps2.common.model.config import ModelConfig
from sps2.common.spans import consecutive, zigzag
from sps2.services.scheduler import traffic
from sps2.services.scheduler.partition import Partition
from sps2.services.scheduler.rates import IN_A_ROW
from sps2.services.scheduler.schemes import EXACT, Schemes

from .pairwise import busiest, by_purpose, transfers
from .test_core import CONFIG

WINDOWS = [(None,), (8,), (None, 100), (5, None, 700)]


def model(windows: tuple[int | None, ...], heads: int = 8, kv_heads: int = 4) -> ModelConfig:
    return replace(
        CONFIG, heads=heads, kv_heads=kv_heads, layers=6, windows=windows * (6 // len(windows))
    )


def one_by_one(
    config: ModelConfig, itemsize: int, scheme: Scheme, spans: traffic.Spans, processes: int = 1
) -> traffic.Loads:
    """As `traffic.loads`, of every transfer."""
    if len(spans) == 1:
        return traffic.Loads({}, 0.0)
    moved = [
        each._replace(nbytes=each.nbytes * processes)
        for each in transfers(config, itemsize, scheme, spans)
    ]
    return traffic.Loads(by_purpose(moved), (busiest(moved, len(spans)),))


@given(
    st.sampled_from(["gather", "pass_q", "csa", "ring", "ulysses", "usp"]),
    st.sampled_from(WINDOWS),
    st.sampled_from(["auto", "int8"]),
    st.integers(2, 12),
    st.integers(0, 3000),
    st.integers(0, 8),
    st.integers(1, 2),
    st.sampled_from([None, 0.0]),
)
@settings(deadline=None)
def test_loads_are_the_sums_of_transfers(
    method: Method,
    windows: tuple[int | None, ...],
    kv_transfer_dtype: KvTransferDtype,
    ranks: int,
    more: int,
    eighths: int,
    processes: int,
    lossless: float | None,
) -> None:
    columns = {"ulysses": min(ranks, 8), "usp": 2}.get(method, 1)
    ranks -= ranks % columns if method != "ulysses" else ranks - columns
    steps = (0.1, 1.0) if kv_transfer_dtype == "int8" else None
    selection = Selection((0.1,) * 6, (0.2,) * 6, steps, rounds=1 + more % 2)
    of_csa = selection if method == "csa" else None
    scheme = Scheme(method, columns, kv_transfer_dtype, of_csa, lossless=lossless)
    tokens = 2 * ranks + more
    spans = zigzag(tokens, ranks // columns, columns)
    if method in IN_A_ROW:
        spans = consecutive(tokens, ranks, eighths / 1000)
    found = traffic.loads(model(windows), 2, scheme, spans, processes)
    wanted = one_by_one(model(windows), 2, scheme, spans, processes)
    assert {k: v for k, v in found.by_purpose.items() if v} == {
        k: v for k, v in wanted.by_purpose.items() if v
    }
    assert max(found.by_rank) == pytest.approx(max(wanted.by_rank), rel=1e-12)


@given(
    st.sampled_from(WINDOWS),
    st.integers(1, 24),
    st.integers(1, 40_000),
    st.sampled_from([0.1, 1.0, 100.0]),
    st.sampled_from([None, *EXACT]),
    st.sampled_from([None, "exact", "balanced"]),
)
@settings(deadline=None, max_examples=50)
def test_choices_are_those_of_the_transfers(
    windows: tuple[int | None, ...],
    ranks: int,
    tokens: int,
    link_gbit: float,
    method: None,
    attention: None,
) -> None:
    def chosen(loads: Callable[..., traffic.Loads]) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(traffic, "loads", loads)
            chooser = Schemes(model(windows), 2, Sharing(link_gbit=link_gbit))
            try:
                return chooser.choose(
                    tokens, ranks, PrefillOptions(method=method, attention=attention)
                )
            except Invalid as error:
                return str(error)

    found, wanted = chosen(traffic.loads), chosen(one_by_one)
    if isinstance(wanted, str):
        assert found == wanted
        return
    assert isinstance(found, Partition)
    assert isinstance(wanted, Partition)
    assert found.predicted_s == pytest.approx(wanted.predicted_s, rel=1e-9)
    assert found._replace(predicted_s=0.0, predicted_bytes={}) == wanted._replace(
        predicted_s=0.0, predicted_bytes={}
    )


def test_a_prompt_for_64_ranks_is_planned_in_little_time() -> None:
    """About 20 ms of processor time: the scheduler's loop does nothing else meanwhile."""
    large = replace(CONFIG, heads=64, kv_heads=8, layers=80, windows=(None,) * 80)
    begun_s = time.thread_time()
    Schemes(large, 2, Sharing()).choose(131_072, 64, PrefillOptions())
    assert time.thread_time() - begun_s < 1.0
