"""Restarting process by process, with real children of a few lines and a gateway that follows."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from msgspec.structs import replace

from sps2.cli import supervise
from sps2.cli.commands import Command
from sps2.cli.restart import _restart
from sps2.cli.rolling import Rolling, restarted_together
from sps2.cli.runs import RunFolder
from sps2.cli.supervise import Supervisor
from sps2.common.bus.peer import Server
from sps2.common.config import Bus, Cluster, Gateway, Scheduler
from sps2.common.errors import Invalid, Refused
from sps2.common.messages import (
    ClusterStatus,
    Greet,
    Greeted,
    ServiceStatus,
    ShardStatus,
    ShowCluster,
)
from sps2.services import compatibility
from sps2.services.compatibility import greeted

from ..waiting import until

NAMES = ("gateway", "scheduler", "kvdir", "prefill-0", "prefill-0.1", "decode-0", "decode-1")
SLEEPER = "import time; print('awake', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
ONCE = f"""
import os, sys
if os.path.exists("mark"):
    sys.exit(3)
open("mark", "w").close()
{SLEEPER}
"""


def test_directory_and_scheduler_come_first_and_the_only_gateway_stays() -> None:
    assert restarted_together(NAMES, []) == [
        "kvdir",
        "scheduler",
        "prefill-0",
        "decode-0",
        "decode-1",
    ]
    assert restarted_together(["gateway", "gateway.1", "kvdir"], [])[1:] == ["gateway", "gateway.1"]
    assert restarted_together(["gateway", "gateway.1"], ["gateway.1"]) == ["gateway.1"]


def test_a_shard_of_several_processes_is_restarted_once() -> None:
    wanted = ["decode-1", "prefill-0.1", "prefill-0", "gateway"]
    assert restarted_together(NAMES, wanted) == ["decode-1", "prefill-0", "gateway"]


def test_what_does_not_run_here_is_refused() -> None:
    with pytest.raises(Invalid, match="decode-7 does not run here; these do: gateway, scheduler"):
        restarted_together(NAMES, ["decode-7"])


class Following:
    """A gateway: each child is ready as soon as it runs, but `broken` if it has ended once.

    Attributes:
        counters: of what the child gateway.1 has.
    """

    counters: ClassVar[dict[str, float]] = {}

    def __init__(self, folder: RunFolder, broken: str) -> None:
        self._folder = folder
        self._broken = broken

    async def greet(self, request: Greet) -> Greeted:
        return greeted("gateway", request)

    async def show_cluster(self, request: ShowCluster) -> ClusterStatus:
        state = self._folder.state()
        children = state.services if state else {}
        services = tuple(
            ServiceStatus(
                name,
                "",
                "ready",
                child.pid,
                counters=self.counters if name == "gateway.1" else {},
            )
            for name, child in children.items()
            if child.pid and not (child.exits and name == self._broken)
        )
        ready = len(services) == len(children)
        shards = tuple(
            ShardStatus(name, "decode", "ready") for name in children if name.startswith("decode")
        )
        return ClusterStatus("tiny", "1", ready, "", services, shards, (), (), 0)


@asynccontextmanager
async def running(
    tmp_path: Path,
    code: str = SLEEPER,
    names: Sequence[str] = ("kvdir", "decode-0", "decode-1"),
) -> AsyncIterator[tuple[RunFolder, Rolling]]:
    """Three services, of which decode-0 runs `code`."""
    folder, stop = RunFolder("test", tmp_path), asyncio.Event()
    server = Server(Following(folder, "decode-0" if code == ONCE else ""), Bus())
    port = int((await server.start("tcp://127.0.0.1:0")).rpartition(":")[2])
    cluster = Cluster(
        name="test", gateway=Gateway(bus_port=port), scheduler=Scheduler(drain_s=0.001)
    )
    folder.prepare(cluster)
    services = {
        name: Command((sys.executable, "-c", code if name == "decode-0" else SLEEPER))
        for name in names
    }
    with folder.owned():
        supervising = asyncio.create_task(Supervisor(folder, services, 0.1).run(stop))
        await until(lambda: all(folder.tail(name, 1) for name in services))
        yield folder, Rolling(folder, 60.0)
        stop.set()
        await supervising
    await server.close()


def pids(folder: RunFolder) -> dict[str, int]:
    state = folder.state()
    return {name: child.pid for name, child in state.services.items()} if state else {}


async def test_one_is_back_when_all_are_ready_again(tmp_path: Path) -> None:
    async with running(tmp_path) as (folder, rolling), rolling.watching():
        before = pids(folder)
        assert await rolling.restart("decode-0") > 0
        after = pids(folder)
        assert after["decode-0"] not in (0, before["decode-0"])
        assert (after["kvdir"], after["decode-1"]) == (before["kvdir"], before["decode-1"])
        await rolling.restart("kvdir")
        assert pids(folder)["kvdir"] not in (0, before["kvdir"])


async def test_one_that_ignores_the_signal_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sps2.cli.rolling.GRACE_S", 0.0)
    monkeypatch.setattr("sps2.services.draining.HANDOVER_S", 0.0)
    async with running(tmp_path, STUBBORN) as (folder, rolling), rolling.watching():
        await rolling.restart("decode-0")
        state = folder.state()
        assert state is not None
        assert state.services["decode-0"].last_exit == "was ended by SIGKILL"


async def test_one_that_ends_again_stops_it(tmp_path: Path) -> None:
    async with running(tmp_path, ONCE) as (_, rolling), rolling.watching():
        with pytest.raises(Refused, match="decode-0 exited with status 3 again"):
            await rolling.restart("decode-0")


@pytest.mark.parametrize("comes_back", [False, True])
async def test_of_one_that_has_ended_by_itself_the_next_process_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    monkeypatch.setattr(supervise, "FIRST_PAUSE_S", 1.0 if comes_back else 600.0)
    async with running(tmp_path) as (folder, rolling), rolling.watching():
        before = pids(folder)
        os.kill(before["decode-0"], signal.SIGKILL)
        await until(lambda: pids(folder) != before)
        if comes_back:
            await rolling.restart("decode-0")
            assert pids(folder)["decode-0"] not in (0, before["decode-0"])
        else:
            rolling._timeout_s = 0.2
            with pytest.raises(Refused, match=r"decode-0 is not back after 0\.2 s"):
                await rolling.restart("decode-0")
        assert pids(folder)["kvdir"] == before["kvdir"]


async def test_one_that_does_not_end_even_by_force_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sps2.cli.rolling.GRACE_S", -10.0)
    monkeypatch.setattr("sps2.cli.rolling.send_signal", lambda pid, number: None)
    async with running(tmp_path) as (_, rolling), rolling.watching():
        rolling._timeout_s = 0.2
        with pytest.raises(Refused, match=r"decode-0 \(pid \d+\) does not end"):
            await rolling.restart("decode-0")


async def test_a_cluster_that_is_not_whole_is_restarted_only_by_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the name of what stands still."""
    still = set[int]()

    async def lost(self: Following, request: ShowCluster) -> ClusterStatus:
        status = await show(self, request)
        first, *others = status.services
        still.update([first.pid] * (not still))
        state = "lost" if first.pid in still else first.state
        return replace(status, services=(replace(first, state=state), *others))

    show = Following.show_cluster
    monkeypatch.setattr(Following, "show_cluster", lost)
    async with running(tmp_path) as (folder, rolling):
        with pytest.raises(Refused, match="the cluster is not whole: kvdir is lost"):
            async with rolling.watching():
                pass
        before = pids(folder)
        for services in (["decode-0"], ["kvdir"]):
            await _restart(Rolling(folder, 60.0), services, True)
        assert {name for name, pid in pids(folder).items() if pid != before[name]} == {
            "decode-0",
            "kvdir",
        }


async def test_a_second_restart_is_refused_while_the_first_is_under_way(tmp_path: Path) -> None:
    async with running(tmp_path) as (folder, rolling):
        before = pids(folder)
        async with rolling.watching():
            with pytest.raises(Refused, match="a restart of cluster 'test' is under way"):
                async with Rolling(folder, 60.0).watching():
                    pass
            assert pids(folder) == before
        async with Rolling(folder, 60.0).watching():
            pass


async def test_a_version_that_what_runs_would_refuse_restarts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compatibility, "schema_hash", iter(["0f", "1e", "1e", "1e"]).__next__)
    async with running(tmp_path) as (_, rolling):
        with pytest.raises(Invalid, match=r"spsctl is SPS2 .* and gateway is .*: install one"):
            async with rolling.watching():
                pass


async def test_a_gateway_that_would_lose_something_is_restarted_only_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counters = {"batches_running": 2.0, "files_kept": 1.0, "responses_stored": 0.0, "ttft_p50": 1.0}
    monkeypatch.setattr(Following, "counters", counters)
    gateways = ["gateway", "gateway.1"]
    async with running(tmp_path, names=gateways) as (folder, rolling):
        before = pids(folder)
        await _restart(rolling, gateways, are_named=False)
        first = pids(folder)
        assert first["gateway"] not in (0, before["gateway"])
        assert first["gateway.1"] == before["gateway.1"]
        said = " ".join(capsys.readouterr().err.split())
        assert "gateway.1 is not restarted, since it would lose 2 running batch jobs and 1" in said
        await _restart(Rolling(folder, 60.0), ["gateway.1"], are_named=True)
        assert pids(folder)["gateway.1"] not in (0, first["gateway.1"])
        assert "gateway.1 loses 2 running batch jobs and 1 file" in capsys.readouterr().err


async def test_what_stands_still_is_said(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, rolling), rolling.watching():
        assert rolling.interrupts("decode-0") == ""
        assert rolling.interrupts("kvdir") == ""
        assert rolling.interrupts("gateway").startswith("the only gateway restarts")
        first, second = rolling._before.shards
        for state in ("drained", "draining"):
            shards = first, replace(second, state=state)
            rolling._before = replace(rolling._before, shards=shards)
            wait = "decode-0 is the only shard that decodes: requests wait until it is back"
            assert rolling.interrupts("decode-0") == wait
            assert rolling.interrupts("decode-1") == ""
        rolling._before = replace(rolling._before, shards=(first,))
        assert rolling.interrupts("decode-0").startswith("decode-0 is the only shard that decodes")
