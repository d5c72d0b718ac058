"""What a rank tells of its time: arithmetic, transfers, and how much of these was hidden."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import pytest

from sps2.common.messages import Method, Scheme, Selection
from sps2.common.spans import consecutive, zigzag
from sps2.kernels.contracts import BLOCK
from sps2.services.prefill.timeline import Entry, Timeline

from .ranks import attended, config, random_qkv

Result = TypeVar("Result")


def test_times_are_those_of_the_entries_together() -> None:
    timeline = Timeline()
    for phase, layer, start_s, stop_s in (
        Entry("compute", -1, 0.0, 1.0),
        Entry("compute", 0, 2.0, 5.0),
        Entry("in", 0, 0.5, 3.0),
        Entry("out", 0, 2.5, 4.0),
        Entry("in", 1, 6.0, 7.0),
    ):
        timeline.add(phase, layer, partial(float, start_s), partial(float, stop_s))
    assert timeline.compute_s() == 4.0
    assert timeline.attention_s() == 3.0
    assert timeline.exchange_s() == 4.5
    assert timeline.hidden_s() == 2.5  # 0.5 to 1, and 2 to 4


TRIES = 5
"""On a busy machine all transfers of one run can end before any arithmetic begins."""


@pytest.mark.parametrize("method", ["ring", "gather", "pass_q", "usp", "csa"])
async def test_transfers_run_beside_arithmetic(method: Method) -> None:
    """A layer takes less than the sum of its phases, by what is reported as hidden."""
    shape = config(8, 4, dim=64)
    q, k, v = random_qkv(2048, shape, 0)
    columns = 2 if method == "usp" else 1
    spans = (
        consecutive(2048, 4, 0.0, BLOCK)
        if method in ("gather", "csa")
        else zigzag(2048, 4 // columns, columns)
    )
    selection = Selection((0.0,), (0.0,)) if method == "csa" else None
    with ThreadPoolExecutor(1) as pool:

        async def run(work: Callable[[], Result]) -> Result:
            return await asyncio.get_running_loop().run_in_executor(pool, work)

        hidden_s = 0.0
        for pipelined in (False, *[True] * TRIES):
            scheme = Scheme(method, columns, "plain", selection, pipelined)
            _, _, groups = await attended(shape, spans, scheme, q, k, v, "tcp", run)
            for group in groups:
                line = group.timeline
                phases = line.compute_s() + line.exchange_s()
                wall = max(e.stop_s for e in line.entries) - min(e.start_s for e in line.entries)
                assert line.hidden_s() <= min(line.compute_s(), line.exchange_s()) + 1e-9
                assert phases - line.hidden_s() <= wall + 1e-9
            if pipelined:
                hidden_s += sum(group.timeline.hidden_s() for group in groups)
            if hidden_s > 0:
                return
        pytest.fail("no transfer ran beside arithmetic")
