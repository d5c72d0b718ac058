"""What commands show at several widths, and in a pipe: nothing is cut that one needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..terminal import terminal
from .acted import IDS, acted
from .top.acts import REQUEST

BOTH = """
import sys
from sps2.cli.main import app
for command in ("status", "trace"):
    app([command, "--config", sys.argv[1]], standalone_mode=False)
"""
DOCTOR = """
import time
from sps2.cli import checks
from sps2.cli.doctor_findings import Finding
from sps2.cli.main import app

def run_all(cluster):
    for number in range(4):
        time.sleep(0.3)  # for the spinner to turn
        yield Finding(f"check {number}", "ok", "all [is] well " + "indeed " * number)

checks.run_all = run_all
app(["doctor"])
"""


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_status_and_traces(tmp_path: Path, width: int) -> None:
    argv = [sys.executable, "-c", BOTH, str(tmp_path / "cluster.toml")]
    with acted(tmp_path, ""), terminal(argv, width, 60) as screen:
        assert screen.wait() == 0
        rows = [row.rstrip() for row in screen.rows]
    words = [row.split() for row in rows]
    starts = [each[0] for each in words if each]
    for name in ("gateway", "decode-1", REQUEST, "c" * 17, *IDS[:2]):
        assert name in starts
    aged = next(each for each in words if each[:1] == ["c" * 17])
    assert "3m15s" in aged
    shard = [each for each in words if each[:1] == ["decode-1"]][-1]
    assert shard == ["decode-1", "ready"]
    first, second = (next(each for each in words if each[:1] == [one]) for one in IDS[:2])
    assert [*first[1:3], first[-1]] == ["12.0s", "5m45s", "ok"]
    assert ("7,900" in first) == (width > 60)
    assert "prefill-1" in second
    ends = " ".join(" ".join(row) for row in words)
    assert (IDS[2] in ends) == (width == 120)
    assert IDS[2][:8] not in ends.replace(IDS[2], "")  # whole, or not at all


def test_a_cluster_that_serves_with_fewer_shards_is_ready(tmp_path: Path) -> None:
    code = BOTH.replace('("status", "trace")', '("status",)')
    with acted(tmp_path, "", missing="1 of 2 decode shards"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "cluster.toml")],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[:2]
    assert first.startswith("acted: ready, tiny")
    assert second == "missing: 1 of 2 decode shards"


def test_a_pipe_gets_everything(tmp_path: Path) -> None:
    with acted(tmp_path, ""):
        done = subprocess.run(
            [sys.executable, "-c", BOTH, str(tmp_path / "cluster.toml")],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    line = next(line for line in lines if line.startswith(IDS[1]))
    assert line.endswith("silent for 3 heartbeats, and [red] no other could take over")
    assert lines[-1].split()[-1] == "ok", "the last request stands last"
    assert lines[-1].startswith(IDS[0])
    assert not any(line.endswith(" ") for line in lines)
    assert IDS[2] in done.stdout
    assert "…" not in done.stdout


def test_so_many_of_the_last_traces_are_listed(tmp_path: Path) -> None:
    def listed(*options: str) -> "subprocess.CompletedProcess[str]":
        file = str(tmp_path / "cluster.toml")
        argv = [sys.executable, "-m", "sps2.cli.main", "trace", *options, "--config", file]
        return subprocess.run(argv, capture_output=True, text=True, timeout=120)

    with acted(tmp_path, "") as gateway:
        one = listed("-n", "1")
        assert [line.split()[0] for line in one.stdout.splitlines()] == ["REQUEST", IDS[0]]
        assert "1 older: spsctl trace -n 2" in one.stderr
        assert len(json.loads(listed("-n", "1", "--json").stdout)["traces"]) == 1
        assert listed(IDS[0], "-n", "1").returncode == 2
        gateway.traces = 30
        assert len(listed().stdout.splitlines()) == 1 + 20
        assert len(json.loads(listed("--json").stdout)["traces"]) == 30


@pytest.mark.parametrize("width", [60, 120])
def test_the_findings_of_doctor_stand_in_rows_of_their_own(width: int) -> None:
    with terminal([sys.executable, "-c", DOCTOR], width, 30) as screen:
        assert screen.wait() == 0
        rows = [row.rstrip() for row in screen.rows if row.strip()]
    assert rows[0] == f"ok       check {0}          all [is] well"
    assert sum(row.startswith("ok       check") for row in rows) == 4
    assert "checking" not in "".join(rows)
