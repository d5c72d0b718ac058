"""A real cluster's events are recorded, decide the same when replayed, and explain a request."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sps2.common.client import Client

from .conftest import Launch, Running

SPSCTL = (sys.executable, "-m", "sps2.cli.main")


def spsctl(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*SPSCTL, *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def cluster(launch: Launch) -> Iterator[Running]:
    with launch("smollm2", "tcp") as running:
        yield running


@pytest.fixture(scope="module")
def answer(cluster: Running) -> str:
    with Client(cluster.bus) as client:
        for length in (40, 200, 120):
            answer = client.complete([3 + 7 * index % 90 for index in range(length)], max_tokens=4)
    return answer.id


def test_a_recording_of_a_cluster_replays(cluster: Running, answer: str, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    done = spsctl("scheduler", "record", str(file), "--seconds", "0")
    assert done.returncode == 0, done.stderr
    replayed = spsctl("scheduler", "replay", str(file))
    assert replayed.returncode == 0, replayed.stderr
    counts = dict(line.rsplit(maxsplit=1) for line in replayed.stdout.splitlines()[:20] if line)
    assert int(counts["Launch"]) >= 3
    assert (
        "All actions followed again, under the policy sps2, and free pages were the same"
        in replayed.stdout
    )
    assert not [peer for peer in file.read_text().split('"token":"')[1:] if peer[0] != '"']
    explained = spsctl("explain", answer, "--from", str(file))
    assert f"request {answer.rpartition('-')[2]}" in explained.stdout
    assert "arrived: 120 tokens of prompt, up to 4 of answer" in explained.stdout


def test_later_events_are_recorded_as_they_come(cluster: Running, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    recording = subprocess.Popen(
        [*SPSCTL, "scheduler", "record", str(file)], stdout=subprocess.PIPE, text=True
    )
    try:
        with Client(cluster.bus) as client:
            while b'"prompt_tokens":77' not in (file.read_bytes() if file.exists() else b""):
                client.complete(list(range(3, 80)), max_tokens=2)
        recording.send_signal(2)
        said, _ = recording.communicate()
    finally:
        recording.kill()
    assert said.startswith(f"{file}: ")
    assert spsctl("scheduler", "replay", str(file)).returncode == 0


def test_an_answer_is_explained(cluster: Running, answer: str) -> None:
    done = spsctl("explain", answer)
    assert done.returncode == 0, done.stderr
    assert "started on prefill-" in done.stdout
    assert "chosen" in done.stdout
    found = json.loads(spsctl("explain", answer, "--json").stdout)
    (request,) = found
    whats = [step["what"] for step in request["steps"]]
    assert whats[-1] == "ended"
    (options,) = [step["options"] for step in request["steps"] if step["options"]]
    assert options[0]["chosen"]
    assert {option["sp_degree"] for option in options} == {1, 2}


def test_an_unknown_answer_is_an_error(cluster: Running) -> None:
    done = spsctl("explain", "cmpl-none")
    assert done.returncode == 1
    assert "remembers no request 'none'" in done.stderr
