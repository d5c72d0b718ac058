"""What docker-compose.yml starts, started: its commands and health checks, on one machine."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from sps2.cli import ports
from sps2.common import config

from .test_compose import ONE, filled, load

CONFIG, HOME = "/etc/sps2/cluster.toml", "/var/lib/sps2"
SHARDS = 20
"""The ports of shards come as many after the first one."""


class Host:
    """One machine that stands for all containers: every host name is loopback's."""

    def __init__(self, folder: Path, known: dict[str, str]) -> None:
        self._folder, self._services = folder, load(ONE)["services"]
        self.port = ports.free_base()
        text = filled(load(ONE)["configs"]["cluster"]["content"], known)
        text = text.replace(HOME, str(folder))
        text = text.replace("shard_port = 8100", f"shard_port = {self.port + SHARDS}")
        text = text.replace("[gateway]", f"[gateway]\nport = {self.port}")
        text = re.sub(r'^host = ".*"', 'host = "127.0.0.1"', text, flags=re.MULTILINE)
        (folder / "cluster.toml").write_text(text)
        tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {name: value for name, value in os.environ.items() if name[:4] != "SPS2"}
        self.environment |= {
            "PATH": tools,
            "SPS2_HOME": str(folder),
            "SPS2_CONFIG": str(folder / "cluster.toml"),
        }

    def _argv(self, words: list[str]) -> list[str]:
        """A command of the file, as it is here."""
        here = [word.replace(CONFIG, str(self._folder / "cluster.toml")) for word in words]
        return [
            "127.0.0.1" if before == "--host" else word
            for before, word in zip(["", *here], here, strict=False)
        ]

    def start(self, service: str) -> "subprocess.Popen[bytes]":
        argv = self._argv(self._services[service]["command"])
        with (self._folder / f"{service}.log").open("w") as log:
            return subprocess.Popen(
                argv, env=self.environment, cwd=self._folder, stdout=log, stderr=log
            )

    def is_well(self, service: str, *more: str) -> bool:
        argv = self._argv(self._services[service]["healthcheck"]["test"][1:])
        done = subprocess.run([*argv, *more], env=self.environment, capture_output=True)
        return not done.returncode

    def run(self, *argv: str) -> str:
        done = subprocess.run(
            argv, env=self.environment, cwd=self._folder, capture_output=True, text=True, check=True
        )
        return done.stdout

    def logs(self) -> str:
        found = sorted(self._folder.glob("*.log"))
        return "\n".join(f"== {each.name}\n{each.read_text()[-2000:]}" for each in found)


def test_what_is_started_answers(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """With two processes in each prefill shard, which stop as well as the others."""
    known = {"SPS2_MODEL": str(checkpoint("llama2")), "SPS2_TP": "2", "SPS2_DECODE_TP": "1"}
    host = Host(tmp_path, known)
    setup = load(ONE)["services"]["setup"]["command"]
    host.run(*host._argv(setup[:2]), setup[2].replace(CONFIG, str(tmp_path / "cluster.toml")))
    key = host.run("spsctl", "keys", "api", "add", "me").split()[-1]
    cluster = config.load(tmp_path / "cluster.toml")
    shards = [name for name in cluster.shard_names() if "." not in name]
    services = ["gateway", "scheduler", "kvdir", *shards]
    running = {service: host.start(service) for service in services}
    try:
        until_s = time.monotonic() + 300
        for service in (*services, "gateway --ready"):
            while not host.is_well(*service.split()):
                ended = [name for name, process in running.items() if process.poll() is not None]
                assert not ended, host.logs()
                assert time.monotonic() < until_s, host.logs()
                time.sleep(0.5)
        logs = [(tmp_path / f"{shard}.log").read_text() for shard in shards]
        loaded = sum(log.count("data plane: ") for log in logs)
        assert loaded == len(cluster.shard_names()), host.logs()
        body = {"model": "llama2", "prompt": "a" * 300, "max_tokens": 4}
        asked = urllib.request.Request(
            f"http://127.0.0.1:{host.port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )
        with urllib.request.urlopen(asked, timeout=120) as answer:
            assert json.loads(answer.read())["usage"]["prompt_tokens"]
        drained = host.run(sys.executable, "-m", "sps2.services.health", "gateway", "--drain", "30")
        assert drained == "no request is in work\n"
    finally:
        for process in running.values():
            process.terminate()
        statuses = {service: process.wait(60) for service, process in running.items()}
    assert not any(statuses.values()), (statuses, host.logs())
