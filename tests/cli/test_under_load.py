"""What shards of one machine cost each other is found in a run under load."""

from dataclasses import replace as with_fields

import pytest
from msgspec.structs import replace

from sps2.cli.simulator.outcomes import Run
from sps2.cli.simulator.profile import Profile
from sps2.cli.simulator.simulation import Simulation
from sps2.cli.simulator.under_load import LOAD, fitted_to, workload_of

from .test_profile import TRUE
from .test_simulation import setup

MADE = replace(TRUE, cores=2.0)


@pytest.mark.parametrize(("threads", "busy"), [(1.0, 1.0), (1.5, 1.0), (1.2, 1.3), (1.8, 1.5)])
def test_the_factors_of_a_run_are_found_again(threads: float, busy: float) -> None:
    made = setup(prefill=2, decode=2, profile=MADE)
    workload = workload_of(MADE, 2048, 60.0, 1)

    def run(profile: Profile) -> Run:
        return Simulation(with_fields(made, profile=profile)).run(workload)

    found = fitted_to(MADE, run(replace(MADE, step_threads=threads, busy_prefill=busy)), run)
    assert (found.step_threads, found.busy_prefill) == pytest.approx((threads, busy))
    assert replace(found, step_threads=1.0, busy_prefill=1.0) == MADE


def test_the_workload_fits_the_machine_and_the_time() -> None:
    for longest, seconds in ((2048, 30.0), (256, 30.0), (100_000, 5.0)):
        workload = workload_of(MADE, longest, seconds, 1)
        assert max(turn.prompt_tokens for turn in workload.turns) <= longest
        work_s = sum(
            MADE.prefill_s(turn.prompt_tokens, turn.prompt_tokens**2 / 2)
            + turn.answer_tokens * MADE.decode_s(1, turn.prompt_tokens, False)
            for turn in workload.turns
        )
        span_s = max(turn.at_s for turn in workload.turns)
        assert work_s / span_s / MADE.cores == pytest.approx(LOAD, rel=0.8)
        assert 10 <= len(workload.turns) <= 40
    other = workload_of(MADE, 2048, 30.0, 2)
    assert other.turns != workload_of(MADE, 2048, 30.0, 1).turns
