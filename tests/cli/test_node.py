"""One service on a host, which lives as long as its launcher is heard of."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest
from msgspec.structs import replace

from sps2.cli import node, ports
from sps2.cli.commands import order
from sps2.cli.hosts import Host, Hosts
from sps2.cli.services import start_of
from sps2.common.config import Cluster, load
from sps2.common.keys.keyring import Keyring


@pytest.fixture
def line(tmp_path: Path, checkpoint: Callable[[str], Path]) -> bytes:
    """An order for a KV directory."""
    cluster = load(port=ports.free_base(), model=str(checkpoint("smollm2")))
    host = Host("alpha", "127.0.0.1", home=str(tmp_path))
    return msgspec.json.encode(order(cluster, Hosts((host,)), host, ["kvdir"])) + b"\n"


async def started(line: bytes) -> Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sps2.cli.node", stdin=PIPE, stderr=PIPE
    )
    assert process.stdin is not None
    process.stdin.write(line)
    await process.stdin.drain()
    return process


async def service_of(process: Process) -> psutil.Process:
    async with asyncio.timeout(60):
        while not (children := psutil.Process(process.pid).children()):
            await asyncio.sleep(0.05)
    return children[0]


async def listening(process: psutil.Process) -> None:
    async with asyncio.timeout(60):
        while not any(each.status == "LISTEN" for each in process.net_connections("tcp")):
            await asyncio.sleep(0.05)


async def test_ends_with_its_standard_input(line: bytes) -> None:
    process = await started(line)
    service = await service_of(process)
    await listening(service)
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 60) == 0
    assert not service.is_running()


async def test_an_order_with_a_thousand_api_keys(line: bytes, tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys")
    ring.make("here")
    ring.add_api_key("first")
    (first,) = ring.api_keys().values()
    many = {f"client-{index}": first for index in range(1000)}
    api = msgspec.json.encode(many).decode()
    told = replace(
        node.read(line), keys={"cluster.key": ring.cluster.read_text("utf-8"), "api.json": api}
    )
    line = msgspec.json.encode(told) + b"\n"
    assert len(line) > 200_000
    process = await started(line)
    await listening(await service_of(process))
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 60) == 0
    (kept,) = (tmp_path / "run").glob("*/keys/api.json")
    assert kept.read_text("utf-8") == api


async def test_an_order_without_an_end_is_refused_in_words() -> None:
    code = "from sps2.cli import node; node.MAX_ORDER_BYTES = 1000; node.main()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=PIPE, stderr=PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(b"x" * 5000), 60)
    assert process.returncode == 1
    assert said.decode().strip() == "the launcher's order has more than 0 MiB"


async def test_a_launcher_that_falls_silent(
    line: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(node, "SILENT_HEARTBEATS", 3)
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    heard = asyncio.StreamReader()
    async with asyncio.timeout(60):
        assert await node.run(node.read(line), heard) == 0


async def test_how_the_service_ended_is_told(line: bytes) -> None:
    process = await started(line)
    service = await service_of(process)
    await listening(service)
    service.send_signal(signal.SIGKILL)
    assert await asyncio.wait_for(process.wait(), 60) == 128 + signal.SIGKILL


async def test_takes_over_from_an_earlier_life(line: bytes) -> None:
    earlier = await started(line)
    old = await service_of(earlier)
    await listening(old)
    later = await started(line)
    assert await asyncio.wait_for(earlier.wait(), 60) == 0
    new = await service_of(later)
    await listening(new)
    assert new.pid != old.pid
    assert later.stdin is not None
    later.stdin.close()
    assert await asyncio.wait_for(later.wait(), 60) == 0


def test_shares_the_cores_of_its_own_host() -> None:
    cores = len(os.sched_getaffinity(0))
    host = Host("alpha", "127.0.0.1", prefill=1, decode=cores)
    told = order(Cluster(prefill=1, decode=cores), Hosts((host,)), host, [])
    assert node.configured(told).threads == 1
    told = order(Cluster(prefill=9), Hosts((host,)), Host("beta", "127.0.0.2", prefill=1), [])
    assert node.configured(told).threads == cores


def test_a_shard_is_told_who_shares_its_machine(tmp_path: Path) -> None:
    hosts = Hosts(
        (
            Host("alpha", "127.0.0.1", prefill=1, decode=1),
            Host("beta", "127.0.0.2", prefill=1, decode=1),
        )
    )
    cluster = Cluster(prefill=2, decode=2, decode_tp=2)
    told = order(cluster, hosts, hosts.hosts[1], ["decode-1.1"])
    assert told.here == ("prefill-1", "decode-1", "decode-1.1")
    file = tmp_path / "x.toml"
    argv = start_of("decode-1.1", file, told.here)
    assert argv[-2:] == ["--here", "prefill-1,decode-1,decode-1.1"]
    assert start_of("gateway", file, told.here)[-1] == str(file)
