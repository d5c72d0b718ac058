"""A real cluster from `up` to `down`, as a user and as an accident would treat it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sps2.cli import ports
from sps2.cli.local import running_cluster
from sps2.cli.runs import RunFolder
from sps2.cli.up import _welcome
from sps2.common.config import Bus, Cluster
from sps2.common.keys.keyring import Keyring
from sps2.common.messages import ClusterStatus

from ..terminal import terminal

Spsctl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def spsctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spsctl]:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        argv = [sys.executable, "-m", "sps2.cli.main", *arguments]
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
        )

    yield run
    run("down", "--name", "test")


def until(condition: Callable[[], Any], timeout_s: float = 120.0) -> Any:
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end_s
        time.sleep(0.1)
    return value


def pids(status: dict[str, Any]) -> dict[str, int]:
    return {service["service"]: service["pid"] for service in status["services"]}


@pytest.mark.model
def test_up_status_complete_restart_down(spsctl: Spsctl, smollm2: Path) -> None:
    def ready() -> Any:
        done = spsctl("status", "--json", "--name", "test")
        return json.loads(done.stdout) if done.returncode == 0 else None

    flags = ("--name", "test", "--port", str(ports.free_base()), "--model", str(smollm2))
    up = spsctl("up", "--detach", *flags)
    assert up.returncode == 0, up.stderr
    assert "test is ready" in up.stdout
    first = ready()
    assert {"gateway", "scheduler", "kvdir", "prefill-0", "decode-0"} == set(pids(first))
    assert [shard["role"] for shard in first["shards"]].count("prefill") == 1

    again = spsctl("up", *flags)
    assert again.returncode == 1
    assert "spsctl down" in again.stderr
    other = spsctl("up", *flags[2:], "--name", "other")
    assert other.returncode == 1
    assert "cluster 'test'" in other.stderr

    done = spsctl("complete", "Once upon a time", "-n", "4", "-t", "0", "--json")
    assert done.returncode == 0, done.stderr
    usage = json.loads(done.stdout)["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["sps2"]["owner"] == "decode-0"
    streamed = spsctl("complete", "Once upon a time", "-n", "4", "-t", "0")
    assert streamed.stdout == json.loads(done.stdout)["choices"][0]["text"] + "\n"
    assert spsctl("chat", "Hello", "-n", "4").returncode == 0

    os.kill(pids(first)["gateway"], signal.SIGKILL)
    until(lambda: (status := ready()) and pids(status)["gateway"] != pids(first)["gateway"])
    assert "was ended by SIGKILL" in spsctl("status").stdout
    assert "gateway was ended by SIGKILL" in spsctl("logs", "supervisor").stdout

    last = pids(ready())
    assert spsctl("down").returncode == 0
    assert not any(psutil.pid_exists(pid) for pid in last.values())
    assert spsctl("status").returncode == 1


@pytest.mark.model
def test_nothing_outlives_a_killed_supervisor(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    with running_cluster(name="test", model=str(smollm2)) as client:
        children = {service.pid for service in client.status().services}
        state = RunFolder("test").state()
        assert state is not None
        os.kill(state.supervisor, signal.SIGKILL)
        until(lambda: not any(psutil.pid_exists(pid) for pid in children))
        assert not RunFolder("test").is_up()


def test_a_service_that_dies_at_start_is_shown_and_all_is_stopped(
    spsctl: Spsctl, tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    model = Path(shutil.copytree(checkpoint("smollm2"), tmp_path / "model"))
    (model / "model.safetensors").write_bytes(b"damaged")
    port = str(ports.free_base())
    up = spsctl("up", "--name", "test", "--port", port, "--model", str(model))
    assert up.returncode == 1
    assert "while the cluster was starting" in up.stderr
    assert f"cannot run: {model}" in up.stderr
    assert "Traceback (most recent call last)" not in up.stderr
    state = RunFolder("test")
    assert not state.is_up()
    assert spsctl("status", "--name", "test").returncode == 1


def test_two_shards_that_do_both_are_a_cluster(
    spsctl: Spsctl, checkpoint: Callable[[str], Path]
) -> None:
    flags = ("--port", str(ports.free_base()), "--model", str(checkpoint("llama3")))
    up = spsctl("up", "--detach", "--name", "test", "--mixed", "2", *flags)
    assert up.returncode == 0, up.stderr
    assert "2 mixed shards" in " ".join(up.stdout.split())
    status = json.loads(spsctl("status", "--name", "test", "--json").stdout)
    assert {"gateway", "scheduler", "kvdir", "mixed-0", "mixed-1"} == set(pids(status))
    assert [(shard["role"], shard["state"]) for shard in status["shards"]] == [
        ("mixed", "ready")
    ] * 2
    assert all(shard["pages_free"] == shard["pages"] > 0 for shard in status["shards"])
    done = spsctl("complete", "Once upon a time", "-n", "4", "-t", "0", "--json", "--name", "test")
    usage = json.loads(done.stdout)["usage"]["sps2"]
    assert usage["owner"] in ("mixed-0", "mixed-1")
    assert usage["deposit_bytes"] == 0
    assert spsctl("down", "--name", "test").returncode == 0


def test_what_is_told_can_be_opened(capsys: pytest.CaptureFixture[str]) -> None:
    status = ClusterStatus("model", "", True, "", (), (), (), (), 0)
    _welcome(Cluster(host="0.0.0.0"), status, 1.0, detached=True)
    told = capsys.readouterr().out
    assert "0.0.0.0" not in told
    assert "http://127.0.0.1:8000/v1" in told
    assert "tcp://" in told


def test_a_cluster_without_api_keys_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ring = Keyring(tmp_path / "keys")
    ring.make("test")
    status = ClusterStatus("model", "", True, "", (), (), (), (), 0)
    cluster = Cluster(bus=Bus(keys=str(ring.folder)))
    _welcome(cluster, status, 1.0, detached=True)
    assert f"`spsctl keys api add NAME --keys {ring.folder}`" in capsys.readouterr().out
    ring.add_api_key("web", None)
    _welcome(cluster, status, 1.0, detached=True)
    assert "keys api add" not in capsys.readouterr().out
    ring.revoke_api_key("web")
    _welcome(cluster, status, 1.0, detached=True)
    assert "keys api add" in capsys.readouterr().out


def test_the_foreground_says_what_it_does(
    spsctl: Spsctl, checkpoint: Callable[[str], Path]
) -> None:
    model = checkpoint("llama3")
    argv = [sys.executable, "-m", "sps2.cli.main", "up", "--name", "test"]
    argv += ["--port", str(ports.free_base()), "--model", str(model)]
    with terminal(argv, 100, 40) as screen:
        screen.until(lambda rows: any("Ctrl-C stops it" in row for row in rows), "the start")
        assert b"loading libraries" in screen.raw
        assert not any("loading" in row for row in screen.rows)
        screen.process.send_signal(signal.SIGINT)
        assert screen.wait() == 0
        assert [row.strip() for row in screen.rows if "stop" in row][-2:] == [
            *("stopping test ...", "test is stopped"),
        ]


def test_who_serves_others_without_tls_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    status = ClusterStatus("model", "", True, "", (), (), (), (), 0)
    _welcome(Cluster(host="10.0.0.1"), status, 1.0, detached=True)
    assert "set tls_certificate and tls_key in [gateway], or put" in capsys.readouterr().out
    _welcome(Cluster(), status, 1.0, detached=True)
    assert "tls_key" not in capsys.readouterr().out
