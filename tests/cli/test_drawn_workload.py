"""Workloads that are drawn: arrivals, and lengths of distributions."""

import itertools
import math
import statistics

import pytest

from sps2.cli.workload.arrivals import Arrivals
from sps2.cli.workload.drawn import Uniform, WithTail, shipped
from sps2.cli.workload.requests import Turn
from sps2.cli.workload.sources import find, names
from sps2.common.errors import Invalid


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_arrivals(cv: float) -> None:
    times = Arrivals(rate=4.0, cv=cv).times_s(20_000, seed=3)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert times[-1] == pytest.approx(5000)
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.08)
    assert times == Arrivals(4.0, cv).times_s(20_000, 3) != Arrivals(4.0, cv).times_s(20_000, 4)


def test_ramps() -> None:
    times = Arrivals(2.0, 0.0, 6.0).times_s(5, 0)
    gaps = [after - before for before, after in itertools.pairwise([0.0, *times])]
    assert [1 / gap for gap in gaps] == pytest.approx([2, 3, 4, 5, 6])
    for wrong in ((-1.0, 1.0, None), (1.0, -1.0, None), (1.0, 1.0, 0.0), (math.inf, 1.0, 2.0)):
        with pytest.raises(Invalid):
            Arrivals(*wrong)


def test_every_distribution_can_be_drawn() -> None:
    for name in names():
        workload = find(name, limit=300, rate=10.0)
        assert workload == find(name, limit=300, rate=10.0)
        assert len(workload.turns) == 300
        assert workload.turns != find(name, limit=300, rate=10.0, seed=1).turns
        times = [turn.at_s for turn in workload.turns]
        assert times == sorted(times)


def test_lengths_are_those_of_the_distribution() -> None:
    quantiles = shipped().lengths["azure-conv"]
    lengths = sorted(turn.prompt_tokens for turn in find("azure-conv", limit=20_000).turns)
    for percent in (25, 50, 75, 90):
        assert lengths[200 * percent] == pytest.approx(quantiles.prompt[percent], rel=0.1)
    assert "github.com/Azure" in quantiles.source


def test_the_mixed_set() -> None:
    prompts = [turn.prompt_tokens for turn in find("mixed", limit=20_000).turns]
    long = [tokens for tokens in prompts if tokens >= 100_000]
    assert len(long) / len(prompts) == pytest.approx(0.05, abs=0.005)
    assert min(long) < 120_000 < 480_000 < max(long) <= 500_000
    assert max(tokens for tokens in prompts if tokens < 100_000) < 5_000
    other = find("mooncake", limit=2000, long_prompts=(600_000, 600_000)).turns
    assert max(turn.prompt_tokens for turn in other) == 600_000
    with pytest.raises(Invalid):
        find("fixed:1,1", long_prompts=(1, 2))
    with pytest.raises(Invalid):
        WithTail(shipped().lengths["mooncake"], (5, 4))


def test_lengths_in_a_name() -> None:
    assert {(t.prompt_tokens, t.answer_tokens) for t in find("fixed:40,7").turns} == {(40, 7)}
    drawn = find("range:10-12,1-2", limit=500).turns
    assert {turn.prompt_tokens for turn in drawn} == {10, 11, 12}
    assert {turn.answer_tokens for turn in drawn} == {1, 2}
    for wrong in ("fixed:40", "fixed:a,b", "range:9-3,1", "fixed:0,1"):
        with pytest.raises(Invalid):
            find(wrong)


def test_spans_of_distributions() -> None:
    turns = find("azure-code", rate=20.0, span_s=30.0).turns
    assert turns[-1].at_s <= 30
    assert len(turns) == pytest.approx(600, rel=0.15)


def test_agents_that_are_drawn_grow() -> None:
    workload = find("agents", limit=400, rate=0.5, scale=1 / 16, longest=20_000)
    assert workload.block_tokens == 32
    before: dict[str, Turn] = {}
    for turn in workload.turns:
        assert turn.prompt_tokens <= 20_000
        assert len(turn.blocks) == -(-turn.prompt_tokens // 32)
        if last := before.get(turn.session):
            shared = min(len(last.blocks) - 1, len(turn.blocks) - 1)
            assert turn.blocks[:shared] == last.blocks[:shared]
            assert turn.think_s is not None
        before[turn.session] = turn
    assert len(before) > 10


def test_uniform_lengths_need_sense() -> None:
    with pytest.raises(Invalid):
        Uniform((0, 4), (1, 1))
