"""A real cluster measures its shards and links, and its record decides alike."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sps2.common.client import Client
from sps2.services.scheduler.events import Computed, Joined, Measured
from sps2.services.scheduler.hardware import USUAL
from sps2.services.scheduler.replay import Recording

from .conftest import Launch, Running

SPSCTL = (sys.executable, "-m", "sps2.cli.main")


@pytest.fixture(scope="module")
def cluster(launch: Launch) -> Iterator[Running]:
    with launch("smollm2", "tcp", mixed=2, sharing={}) as running:
        yield running


def spsctl(*arguments: str) -> str:
    return subprocess.run([*SPSCTL, *arguments], capture_output=True, text=True, check=True).stdout


def status() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(spsctl("status", "--json"))
    return found


def test_the_cluster_measures_itself(cluster: Running, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"

    def recorded() -> Recording:
        """What the scheduler has recorded so far."""
        spsctl("scheduler", "record", str(file), "--seconds", "0")
        return Recording.read(file)

    def measured() -> list[Measured]:
        events = [entry.event for entry in recorded().entries]
        return [each for each in events if isinstance(each, Measured) and each.measures]

    while {each.shard for each in measured()} != {"mixed-0", "mixed-1"}:
        time.sleep(0.1)
    assert any(each.measures and each.measures.gflops for each in measured())
    rates = status()["rates"]
    assert rates["gflops"] != USUAL.gflops
    assert rates["link_latency_s"] != USUAL.link_latency_s
    assert all(value > 0 for value in rates.values())
    with Client(cluster.bus) as client:
        client.complete([3 + number % 90 for number in range(200)], max_tokens=2)
    events = [entry.event for entry in recorded().entries]
    joined = [each for each in events if isinstance(each, Joined)]
    assert all(each.shard.gflops > 0 for each in joined)
    assert any(isinstance(each, Computed) for each in events)
    spsctl("scheduler", "replay", str(file))
