"""`spsctl top` in a terminal of its own, over a real bus whose services are acted."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sps2.cli import ports
from sps2.cli.main import app
from sps2.common import config
from sps2.common.bus.peer import Server
from sps2.common.bus.telemetry import Hub, Publisher
from sps2.common.config import Cluster
from sps2.common.config import text as config_text
from sps2.common.messages import ClusterStatus, ShowCluster

from ...terminal import Terminal, terminal
from .acts import NAMES, REQUEST, event, heartbeat, running, status

HEARTBEAT_S = 0.2


class Actors:
    """Heartbeats of a small cluster under load, on the bus, and a gateway that is asked."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.silent: set[str] = set()

    async def show_cluster(self, request: ShowCluster) -> ClusterStatus:
        return status(running())

    async def run(self) -> None:
        cluster = self.cluster
        hub = Hub(cluster.publish_address, cluster.subscribe_address, cluster.bus)
        await hub.start()
        publisher = Publisher(cluster.publish_address, "actors", cluster.bus)
        server = Server([self], cluster.bus)
        await server.start(cluster.gateway_address)
        try:
            for step in count(1):
                for name in NAMES:
                    if name not in self.silent:
                        publisher.publish(heartbeat(name, step, tokens={REQUEST: step}))
                publisher.publish(event("decode"))
                publisher.publish(event("queued", "b" * 16, prompt_tokens=300, max_tokens=5))
                await asyncio.sleep(HEARTBEAT_S)
        finally:
            await server.close()
            publisher.close()
            await hub.close()


@pytest.fixture
def actors(tmp_path: Path) -> Iterator[Actors]:
    cluster = config.load(port=ports.free_base(), name="acted", bus={"heartbeat_s": HEARTBEAT_S})
    (tmp_path / "cluster.toml").write_text(config_text.dump(cluster, "test"))
    made = Actors(cluster)
    loop = asyncio.new_event_loop()
    work = loop.create_task(made.run())

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(asyncio.gather(work, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    yield made
    loop.call_soon_threadsafe(work.cancel)
    thread.join()


def command(tmp_path: Path, *options: str) -> list[str]:
    file = str(tmp_path / "cluster.toml")
    return [sys.executable, "-m", "sps2.cli.main", "top", "--config", file, *options]


def text(rows: list[str]) -> str:
    return "\n".join(rows)


def live(screen: Terminal) -> list[str]:
    return screen.until(
        lambda rows: "decode-1  decode  busy" in text(rows) and "3.0M" in text(rows), "all rates"
    )


def test_keys_and_sizes(actors: Actors, tmp_path: Path) -> None:
    with terminal(command(tmp_path), 80, 24) as screen:
        live(screen)
        screen.until(
            lambda rows: (
                "spsctl top  acted  tiny  ready" in rows[0] and "3fa9c01be2d4" in text(rows)
            ),
            "the head and a request",
        )

        screen.press("/bbb")
        screen.until(lambda rows: "filter: bbb" in rows[-1], "the filter as it is typed")
        screen.press("\r")
        screen.until(lambda rows: "3fa9c01be2d4" not in text(rows), "what the filter leaves")
        screen.press("\x1b")
        screen.until(lambda rows: "3fa9c01be2d4" in text(rows), "everything again")

        screen.press("\r")
        screen.until(lambda rows: "7,900 tokens, 512 cached" in text(rows), "the detail")
        screen.press("\r")
        live(screen)

        screen.resize(200, 50)
        screen.until(
            lambda rows: (
                "SERVICE" in text(rows) and any("SHARD" in row and "FROM→TO" in row for row in rows)
            ),
            "the larger screen",
        )

        screen.press("q")
        assert screen.wait() == 0
        # the terminal is as it was: its own screen again, and a cursor
        assert b"\x1b[?1049h" in screen.raw
        assert screen.raw.rindex(b"\x1b[?1049l") > screen.raw.rindex(b"\x1b[?1049h")
        assert screen.raw.rindex(b"\x1b[?25h") > screen.raw.rindex(b"\x1b[?25l")
        assert b"\x1b[2J" not in screen.raw[screen.raw.index(b"\x1b[?1049h") + 20 :], "it flickers"


def test_pause_and_a_lost_shard(actors: Actors, tmp_path: Path) -> None:
    with terminal(command(tmp_path)) as screen:
        live(screen)
        screen.press("p")
        screen.until(lambda rows: "PAUSED" in rows[0], "the pause")
        frozen = screen.rows
        actors.silent.add("decode-1")
        time.sleep(3 * HEARTBEAT_S)
        assert screen.rows == frozen
        screen.press("p")
        screen.until(lambda rows: "decode-1  decode  lost" in text(rows), "the loss")
        actors.silent.clear()
        live(screen)
        screen.process.send_signal(2)  # Ctrl-C
        assert screen.wait() == 0


def test_once(actors: Actors, tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, "--once"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "decode-1  decode  busy" in done.stdout
    assert "3.0M" in done.stdout
    assert "\x1b" not in done.stdout
    told = subprocess.run(
        command(tmp_path, "--once", "--json"), capture_output=True, text=True, timeout=60
    )
    found = json.loads(told.stdout)
    assert [each["id"] for each in found["shards"]] == list(NAMES[3:])
    assert {"services", "shards", "requests", "links", "cluster"} == found.keys()
    assert found["requests"][0]["stage"] == "decode"


def test_a_stream_for_scripts(actors: Actors, tmp_path: Path) -> None:
    with subprocess.Popen(command(tmp_path, "--json"), stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None
        for _ in range(2):
            assert json.loads(top.stdout.readline())["cluster"]["state"] == "ready"
        top.terminate()


def test_where_there_is_no_terminal(actors: Actors, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["top", "--config", str(tmp_path / "cluster.toml")])
    assert result.exit_code == 1
    assert "--once" in result.stderr


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    cluster = config.load(port=ports.free_base(), name="nobody")
    (tmp_path / "cluster.toml").write_text(config_text.dump(cluster, "test"))
    done = subprocess.run(command(tmp_path, "--once"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"waits for the gateway at {cluster.gateway_address}" in done.stdout
