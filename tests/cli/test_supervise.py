"""The supervisor, with real children of a few lines."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sps2.cli.commands import Command, commands
from sps2.cli.runs import RunFolder
from sps2.cli.services import service_names, units
from sps2.cli.supervise import Supervisor
from sps2.common.config import Cluster, load

from ..waiting import until

SLEEPER = "import time; print('awake', flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('awake', flush=True); time.sleep(60)"
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder("test", tmp_path)
    folder.prepare(Cluster(name="test"))
    return folder


def python(code: str, **environment: str) -> Command:
    return Command((sys.executable, "-c", code), environment)


def written(folder: RunFolder) -> dict[str, int]:
    state = folder.state()
    return {name: child.pid for name, child in state.services.items()} if state else {}


def exits(folder: RunFolder, service: str) -> int:
    state = folder.state()
    return state.services[service].exits if state and state.services else 0


async def test_starts_restarts_and_stops(folder: RunFolder) -> None:
    stop = asyncio.Event()
    with folder.owned():
        supervisor = Supervisor(folder, {"one": python(SLEEPER), "two": python(SLEEPER)})
        running = asyncio.create_task(supervisor.run(stop))
        await until(lambda: all(written(folder).values()) and len(written(folder)) == 2)
        first = written(folder)
        await until(lambda: folder.tail("one", 5) == ["awake"])

        os.kill(first["one"], 9)
        await until(lambda: written(folder)["one"] not in (0, first["one"]))
        state = folder.state()
        assert state is not None
        assert state.supervisor == os.getpid()
        assert state.services["one"].exits == 1
        assert state.services["one"].last_exit == "was ended by SIGKILL"
        assert state.services["two"].exits == 0
        assert written(folder)["two"] == first["two"]

        last = written(folder)
        stop.set()
        await running
        assert not any(psutil.pid_exists(pid) for pid in [*first.values(), *last.values()])


async def test_kills_what_ignores_sigterm(folder: RunFolder) -> None:
    stop = asyncio.Event()
    with folder.owned():
        supervisor = Supervisor(folder, {"stubborn": python(STUBBORN)}, grace_s=0.1)
        running = asyncio.create_task(supervisor.run(stop))
        await until(lambda: folder.tail("stubborn", 1) == ["awake"])
        pid = written(folder)["stubborn"]
        stop.set()
        await running
        assert not psutil.pid_exists(pid)


async def test_backs_off_from_a_service_that_cannot_start(folder: RunFolder) -> None:
    stop = asyncio.Event()
    with folder.owned():
        running = asyncio.create_task(
            Supervisor(folder, {"broken": python("raise SystemExit(3)")}).run(stop)
        )
        await until(lambda: exits(folder, "broken") >= 2)
        stop.set()
        await running
        state = folder.state()
        assert state is not None
        assert state.services["broken"].last_exit == "exited with status 3"


async def test_one_that_ends_because_it_was_told_is_back_soon(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    stop = asyncio.Event()
    with folder.owned():
        supervisor = Supervisor(folder, {"told": python("raise SystemExit(0)")})
        running = asyncio.create_task(supervisor.run(stop))
        await until(lambda: exits(folder, "told") >= 3)
        stop.set()
        await running
    said = [each.message for each in caplog.records if "after" in each.message]
    assert {each.rpartition("; ")[2] for each in said} == {"restart in 0.25 s"}


@pytest.mark.parametrize(
    ("first", "pauses"), [("shard", ["0.25", "0.25"]), ("shard.1", ["0.25", "0.50"])]
)
async def test_how_the_first_process_of_a_unit_ends_says_whether_it_was_told_to(
    folder: RunFolder, caplog: pytest.LogCaptureFixture, first: str, pauses: list[str]
) -> None:
    """The leader ends when it is told to, the other process by a fault; the rest is ended then."""
    codes = {"shard": "raise SystemExit(0)", "shard.1": "raise SystemExit(3)"}
    services = {name: python(codes[name] if name == first else SLEEPER) for name in codes}
    stop = asyncio.Event()

    def said() -> list[str]:
        return [each.message for each in caplog.records if f"{first} exited" in each.message]

    with folder.owned():
        running = asyncio.create_task(Supervisor(folder, services).run(stop))
        await until(lambda: len(said()) >= 2)
        stop.set()
        await running
    assert [each.rpartition("restart in ")[2].removesuffix(" s") for each in said()[:2]] == pauses


async def test_children_get_their_environment_and_the_run_folder(folder: RunFolder) -> None:
    code = "import os; print(os.environ['SPS2_SUPERVISOR_PID'], os.environ['X'], os.getcwd())"
    stop = asyncio.Event()
    with folder.owned():
        running = asyncio.create_task(Supervisor(folder, {"a": python(code, X="7")}).run(stop))
        await until(lambda: f"{os.getpid()} 7 {folder.path}" in folder.tail("a", 100))
        stop.set()
        await running


def test_names_and_commands_of_a_cluster(folder: RunFolder) -> None:
    cluster = Cluster(prefill=2, decode=1, threads=3)
    assert service_names(cluster) == [
        "gateway",
        "scheduler",
        "kvdir",
        "prefill-0",
        "prefill-1",
        "decode-0",
    ]
    made = commands(cluster, folder)
    assert made["prefill-1"].argv[1:] == (
        "-m",
        "sps2.services.prefill",
        "--config",
        str(folder.config),
        "--index",
        "1",
    )
    assert made["prefill-1"].environment["OMP_NUM_THREADS"] == "3"
    assert made["gateway"].environment["OMP_NUM_THREADS"] == "1"
    assert "--index" not in made["gateway"].argv


def test_a_shard_of_several_processes_is_one_unit(folder: RunFolder) -> None:
    cluster = Cluster(prefill=2, decode=1, tp=2, decode_tp=3)
    names = service_names(cluster)
    assert units(names)[3:] == [
        ["prefill-0", "prefill-0.1"],
        ["prefill-1", "prefill-1.1"],
        ["decode-0", "decode-0.1", "decode-0.2"],
    ]
    assert commands(cluster, folder)["decode-0.2"].argv[-4:] == ("--index", "0", "--rank", "2")


def test_gateways_are_units_of_their_own(folder: RunFolder) -> None:
    cluster = load(gateway={"processes": 3})
    names = service_names(cluster)
    assert names[:4] == ["gateway", "gateway.1", "gateway.2", "scheduler"]
    assert units(names)[:3] == [["gateway"], ["gateway.1"], ["gateway.2"]]
    argv = commands(cluster, folder)["gateway.2"].argv
    assert (argv[2], argv[-2:]) == ("sps2.services.gateway", ("--rank", "2"))
    assert commands(cluster, folder)["gateway.2"].environment["OMP_NUM_THREADS"] == "1"


def test_shards_that_do_both_are_services_of_their_own(folder: RunFolder) -> None:
    cluster = load(mixed=2)
    assert service_names(cluster)[3:] == ["mixed-0", "mixed-1"]
    argv = commands(cluster, folder)["mixed-1"].argv
    assert (argv[2], argv[-2:]) == ("sps2.services.mixed", ("--index", "1"))


async def test_processes_of_a_unit_end_and_start_again_together(folder: RunFolder) -> None:
    stop = asyncio.Event()
    with folder.owned():
        services = {name: python(SLEEPER) for name in ("shard", "shard.1", "other")}
        running = asyncio.create_task(Supervisor(folder, services).run(stop))
        await until(lambda: all(written(folder).values()) and len(written(folder)) == 3)
        first = written(folder)
        os.kill(first["shard.1"], 9)
        await until(lambda: written(folder)["shard"] not in (0, first["shard"]))
        await until(lambda: written(folder)["shard.1"] not in (0, first["shard.1"]))
        assert not psutil.pid_exists(first["shard"])
        assert written(folder)["other"] == first["other"]
        stop.set()
        await running


def test_the_process_ends_with_whoever_it_is_attached_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    folder = RunFolder("test")
    folder.prepare(Cluster(name="test"))
    argv = [sys.executable, "-m", "sps2.cli.supervise", "test", "--attached"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0
        assert not folder.is_up()
    finally:
        process.kill()
        process.wait()


def test_refuses_a_cluster_that_has_a_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    folder = RunFolder("test")
    folder.prepare(Cluster(name="test"))
    with folder.owned():
        argv = [sys.executable, "-m", "sps2.cli.supervise", "test"]
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "already up" in done.stderr
