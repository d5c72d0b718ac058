"""Probes of services that answer, wait, and are not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from sps2.cli import ports
from sps2.common.bus.peer import Server
from sps2.common.config import Cluster, Gateway, load
from sps2.common.config import text as config_text
from sps2.common.errors import Invalid, ServiceError
from sps2.common.messages import Describe, Info
from sps2.services import health
from sps2.services.compatibility import VERSION
from sps2.services.run import About


def probe(file: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "sps2.services.health", "--config", str(file), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120)


async def test_a_service_that_answers_and_waits(tmp_path: Path) -> None:
    import asyncio

    cluster = load(port=ports.free_base(), shard_port=ports.free_base() + 8)
    file = tmp_path / "cluster.toml"
    file.write_text(config_text.dump(cluster, "of a test"))
    about = About("decode-0", ports=cluster.shard_ports_of("decode", 0, 0), started=True)
    server = Server([about], cluster.bus)
    await server.start(about.listen_at())
    alive = await asyncio.to_thread(probe, file, "decode-0", "--ready")
    assert (alive.returncode, alive.stdout) == (0, "decode-0 is ready\n"), alive.stderr
    about.missing = lambda: "the scheduler"
    assert (await asyncio.to_thread(probe, file, "decode-0")).returncode == 0
    waiting = await asyncio.to_thread(probe, file, "decode-0", "--ready")
    assert (waiting.returncode, waiting.stderr) == (
        1,
        "decode-0 is waiting; it waits for the scheduler\n",
    )
    await server.close()


async def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "DEADLINE_S", 0.2)
    cluster = load(port=ports.free_base())
    at = health.address(cluster, "gateway", None)
    with pytest.raises(Exception, match="Describe to gateway passed its deadline"):
        await health.ask(cluster, "gateway", at)


def test_a_shard_whose_port_is_not_known_cannot_be_asked(tmp_path: Path) -> None:
    """That is not to be taken for a shard that does not answer."""
    (tmp_path / "cluster.toml").write_text("")
    done = probe(tmp_path / "cluster.toml", "decode-0")
    assert done.returncode == 2
    assert done.stderr.startswith("decode-0 cannot be asked: its port is not known")
    assert "shard_port" in done.stderr


def test_where_services_are() -> None:
    cluster = Cluster(prefill=2, decode=2, tp=2, shard_port=9000)
    found = [health.address(cluster, name, None) for name in ("gateway", "prefill-1.1")]
    assert found == ["tcp://127.0.0.1:8001", "tcp://127.0.0.1:9006"]
    assert health.address(cluster, "decode-0", "localhost") == "tcp://127.0.0.1:9008"
    several = Cluster(gateway=Gateway(processes=2))
    assert health.address(several, "gateway.1", None) == "tcp://127.0.0.1:8016"
    for service, said in (("gatway", "no service"), ("prefill-x", "no shard")):
        with pytest.raises(Invalid, match=said):
            health.address(cluster, service, None)
    with pytest.raises(Invalid, match="shard_port"):
        health.address(Cluster(), "prefill-0", None)


class Counted:
    """A scheduler, as far as it says how many requests it has."""

    def __init__(self, *running: int) -> None:
        self._running = list(running)

    async def describe(self, request: Describe) -> Info:
        running = self._running.pop(0) if len(self._running) > 1 else self._running[0]
        counters = {"requests_running": float(running), "requests_waiting": 0.0}
        return Info("scheduler", 1, VERSION, "ready", "", 0, 0.0, counters, ())


@pytest.mark.parametrize(
    ("running", "drained"), [((0,), True), ((2, 1, 0, 1, 0), True), ((1,), False)]
)
async def test_a_gateway_is_drained(running: tuple[int, ...], drained: bool) -> None:
    cluster = load(port=ports.free_base())
    scheduler = Counted(*running)
    server = Server([scheduler], cluster.bus)
    await server.start(cluster.scheduler_address)
    waited = await health.drained(cluster, 1.0, settle_s=0.05, poll_s=0.01)
    await server.close()
    assert waited is drained
    assert len(scheduler._running) == 1, "it was asked until then"


async def test_no_scheduler_tells_whether_a_gateway_is_drained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "DEADLINE_S", 0.2)
    with pytest.raises(ServiceError, match="scheduler"):
        await health.drained(load(port=ports.free_base()), 5.0)
