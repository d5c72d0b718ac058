"""Logs of several services become one, by time."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sps2.cli.logs import merged
from sps2.cli.main import app
from sps2.cli.runs import RunFolder
from sps2.common.config import Cluster

A1 = "2026-01-01 10:00:00.100 INFO    a one"
A3 = "2026-01-01 10:00:00.300 ERROR   a three"
B2 = "2026-01-01 10:00:00.200 INFO    b two"


def test_merged_keeps_tracebacks_with_their_line() -> None:
    lines = [[A1, A3, "Traceback", "  boom"], [B2]]
    assert merged(lines) == [A1, B2, A3, "Traceback", "  boom"]


def test_merged_without_times() -> None:
    assert merged([["x", "y"], [], [A1]]) == ["x", "y", A1]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    runner = CliRunner()
    assert runner.invoke(app, ["logs"]).exit_code == 1
    folder = RunFolder("default")
    folder.prepare(Cluster())
    folder.log("gateway").write_text(f"{A1}\n{A3}\n")
    folder.log("kvdir").write_text(f"{B2}\n")
    assert runner.invoke(app, ["logs"]).stdout.splitlines() == [A1, B2, A3]
    assert runner.invoke(app, ["logs", "gateway", "-n", "1"]).stdout.splitlines() == [A3]
    unknown = runner.invoke(app, ["logs", "gatway"])
    assert unknown.exit_code == 2
    assert "gateway, kvdir" in unknown.output


def test_which_cluster_is_meant_is_told_where_there_are_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    runner = CliRunner()
    for number, name in enumerate(("first", "last")):
        RunFolder(name).prepare(Cluster(name=name))
        os.utime(RunFolder(name).config, (number, number))
    RunFolder("first").log("gateway").write_text(f"{A1}\n")
    done = runner.invoke(app, ["logs"])
    assert "cluster last, the last one that was up (--name chooses another)" in done.stderr
    assert "cluster last: none of its services has logged a line" in done.stderr
    assert (done.exit_code, done.stdout) == (0, "")
    with RunFolder("first").owned():
        done = runner.invoke(app, ["logs"])
        assert (done.stdout, "cluster first, which is up" in done.stderr) == (f"{A1}\n", True)
    assert runner.invoke(app, ["logs", "--name", "first"]).stderr == ""
    RunFolder("first").log("kvdir").touch()
    done = runner.invoke(app, ["logs", "kvdir", "--name", "first"])
    assert "cluster first: kvdir has logged nothing" in done.stderr
