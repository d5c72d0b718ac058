"""Fits what shards of one machine cost each other under load, from a run that is measured."""

from collections.abc import Callable
from itertools import product

from msgspec.structs import replace

from sps2.cli.simulator.outcomes import Run
from sps2.cli.simulator.profile import Profile
from sps2.cli.workload import sources
from sps2.cli.workload.requests import Workload

SOURCE = "azure-conv"
REQUESTS = 40
LOAD = 0.5
"""Of what the cores could compute."""
LONGEST_SHARE = 0.5
"""The longest prompt has at most this share of the longest that was measured."""
THREADS = tuple(1 + tenth / 10 for tenth in range(11))
"""Values of `Profile.step_threads` that are tried."""
BUSY = tuple(1 + tenth / 10 for tenth in range(8))
"""Values of `Profile.busy_prefill` that are tried."""


def workload_of(profile: Profile, longest: int, seconds: float, seed: int) -> Workload:
    """A workload that keeps the profiled shards about half busy for so long.

    Args:
        longest: tokens of the longest prompt that was measured.
    """
    whole = sources.find(SOURCE, limit=REQUESTS, rate=1.0, cv=1.0, seed=seed)
    most = max(turn.prompt_tokens for turn in whole.turns)
    scale = min(1.0, LONGEST_SHARE * longest / most)

    def drawn(rate: float, limit: int) -> Workload:
        return sources.find(SOURCE, limit=limit, rate=rate, cv=1.0, scale=scale, seed=seed)

    work_s = [
        profile.prefill_s(turn.prompt_tokens, turn.prompt_tokens**2 / 2)
        + turn.answer_tokens * profile.decode_s(1, turn.prompt_tokens, False)
        for turn in drawn(1.0, REQUESTS).turns
    ]
    rate = LOAD * max(1.0, profile.cores) * len(work_s) / sum(work_s)
    return drawn(rate, max(10, min(REQUESTS, round(rate * seconds))))


def fitted_to(profile: Profile, live: Run, simulated: Callable[[Profile], Run]) -> Profile:
    """The profile with the `step_threads` and `busy_prefill` that predict a live run best.

    Args:
        simulated: the same run with a profile.
    """

    def error(tried: Profile) -> float:
        run = simulated(tried)
        return sum(abs(_mean(run, name) / _mean(live, name) - 1) for name in ("ttft_s", "e2e_s"))

    tried = [
        replace(profile, step_threads=threads, busy_prefill=busy)
        for threads, busy in product(THREADS, BUSY)
    ]
    return min(tried, key=error)


def _mean(run: Run, name: str) -> float:
    found: list[float] = [
        each for outcome in run.outcomes if (each := getattr(outcome, name)) is not None
    ]
    return sum(found) / len(found)
