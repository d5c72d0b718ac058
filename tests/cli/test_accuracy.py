"""The comparison of a live run with its simulation."""

import pytest

from sps2.cli.simulator.accuracy import accuracy
from sps2.cli.simulator.outcomes import Outcome, Run

from .made_runs import run_of


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
