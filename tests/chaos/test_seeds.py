"""A few seeds of faults on a real cluster; `make chaos` runs two hundred."""

import asyncio
from pathlib import Path

import pytest

from ..checkpoints import write_checkpoint
from .faults import KINDS, drawn
from .run import many

SEEDS = (16, 20, 118)
"""A decode shard is killed, connections to the directory are cut, the scheduler is killed."""


def test_faults_end_no_request_wrongly_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stream ends once, with the right tokens or an error in words; all pages come back."""
    monkeypatch.setenv("SPS2_HOME", str(tmp_path / "home"))
    model = tmp_path / "model"
    write_checkpoint("smollm2", model)
    results = asyncio.run(many([*SEEDS], model, tmp_path))
    told = [line for result in results for line in result.lines()]
    assert [result.seed for result in results if not result.wrong] == [*SEEDS], "\n".join(told)


def test_a_seed_draws_the_same_faults_again() -> None:
    services = ["gateway", "scheduler", "kvdir", "prefill-0", "decode-0", "decode-1"]
    for seed in range(20):
        assert drawn(seed, services, KINDS) == drawn(seed, services, KINDS)
