"""The comparison of a live run with its simulation."""

import time
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from sps2.cli.bench import accuracy as bench_accuracy
from sps2.cli.bench.serve.reply import Reply
from sps2.cli.simulator import live
from sps2.cli.simulator.accuracy import accuracy
from sps2.cli.simulator.outcomes import Outcome, Run
from sps2.cli.workload.requests import Turn, Workload
from sps2.common.config import Cluster

from .made_runs import run_of
from .test_simulation import PROFILE, setup


def answered(number: int, ttft_s: float, e2e_s: float, nbytes: float) -> Outcome:
    return Outcome(
        f"r{number}",
        "",
        float(number),
        100,
        11,
        first_s=number + ttft_s,
        ended_s=number + e2e_s,
        delays=[],
        sent_bytes={"kv": nbytes},
    )


def runs(factor: float) -> tuple[Run, Run]:
    live = [answered(number, 1.0 + number % 3, 5.0, 1000.0) for number in range(60)]
    simulated = [
        answered(number, factor * (1.0 + number % 3), factor * 5.0, 1010.0) for number in range(60)
    ]
    return run_of(live), run_of(simulated)


def test_errors_are_those_of_the_means() -> None:
    found = {each.name: each for each in accuracy(*runs(1.2))}
    assert found["mean TTFT, s"].live == pytest.approx(2.0)
    assert found["mean TTFT, s"].error == pytest.approx(0.2)
    assert found["p99 TTFT, s"].error == pytest.approx(0.2)
    assert found["mean E2E, s"].error == pytest.approx(0.2)
    assert found["bytes of kv"].error == pytest.approx(0.01)


def test_an_interval_has_the_error_and_narrows_with_more_requests() -> None:
    live, simulated = runs(1.0)
    for number, outcome in enumerate(simulated.outcomes):
        outcome.first_s = outcome.arrived_s + (outcome.ttft_s or 0.0) * (1.5 if number % 2 else 0.7)
    few = {each.name: each for each in accuracy(run_of(live.outcomes[:12]), simulated)}[
        "mean TTFT, s"
    ]
    many = {each.name: each for each in accuracy(live, simulated)}["mean TTFT, s"]
    assert many.low is not None
    assert many.high is not None
    assert many.error is not None
    assert few.low is not None
    assert few.high is not None
    assert many.low < many.error < many.high
    assert many.high - many.low < few.high - few.low


def test_only_requests_that_both_answered_count() -> None:
    live, simulated = runs(1.0)
    live.outcomes[0].ended_s = None
    simulated.outcomes[1].ended_s = None
    simulated.outcomes[0].first_s = 1e6
    live.outcomes[1].first_s = 1e6
    found = {each.name: each for each in accuracy(live, simulated)}
    assert found["mean TTFT, s"].error == pytest.approx(0.0)


def test_nothing_in_common_has_no_figures() -> None:
    live, _ = runs(1.0)
    assert accuracy(live, run_of([])) == []


async def test_runs_with_the_same_seed_find_nothing_of_each_other_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first of six configurations seemed a fifth faster live: its prompts were cached."""
    sent: list[tuple[tuple[int, ...], str]] = []

    class Backend:
        def __init__(self, _: object, fields: dict[str, str]) -> None:
            self.salt = fields["cache_salt"]

        async def ask(self, prompt: list[int], _: int, reply: Reply) -> None:
            sent.append((tuple(prompt), self.salt))
            reply.sent_s = time.perf_counter()
            reply.stamps_s = [reply.sent_s]

    class Client:
        def __init__(self, *_: object) -> None:
            pass

        async def __aenter__(self) -> "Client":
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def status(self) -> object:
            return SimpleNamespace(requests=())

    monkeypatch.setattr(live, "Sdk", Backend)
    monkeypatch.setattr(live, "AsyncClient", Client)
    workload = Workload("one", [Turn(0.0, 40, 1)])
    for _ in range(2):
        await live.run_live(Cluster(), setup(), workload, 7)
    (first, one), (again, other) = sent[2], sent[-1]  # behind two that warm up
    assert first == again
    assert one != other


@pytest.mark.parametrize(("lone_s", "slower"), [(0.1, 2.0), (0.0, 1.0)])
def test_simulated_times_follow_the_speed_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, lone_s: float, slower: float
) -> None:
    """By what a prompt alone takes now, and took when the cluster was profiled."""

    async def now(_: Cluster) -> float:
        return 0.2

    async def run(*_: object) -> Run:
        return run_of([])

    monkeypatch.setattr(bench_accuracy, "lone_s", now)
    monkeypatch.setattr(bench_accuracy, "run_live", run)
    workload = Workload("one", [Turn(0.0, 40, 1)])
    made = setup(profile=replace(PROFILE, lone_s=lone_s))
    _, simulated, found = bench_accuracy.both(Cluster(), made, workload, 0)
    _, usual, _ = bench_accuracy.both(Cluster(), setup(profile=PROFILE), workload, 0)
    assert found == slower
    ttft_s, before_s = (each.outcomes[0].ttft_s or 0.0 for each in (simulated, usual))
    assert ttft_s == pytest.approx(slower * before_s, rel=0.01)
