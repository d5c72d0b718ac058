"""What the image runs by default: the demo model, at every address, for those with a key."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from sps2.cli import addresses, ports

FOLDER = Path(__file__).parents[2] / "compose"


def ask(url: str, key: str | None, body: dict[str, object] | None = None) -> tuple[int, str]:
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    data = json.dumps(body).encode() if body else None
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, headers), timeout=60
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.model
def test_the_default_command_serves_the_demo_model(smollm2: Path, tmp_path: Path) -> None:
    """As with `docker run -p 8000:8000`: in an empty home but for the model, which is there."""
    home, port = tmp_path / "home", ports.free_base()
    (home / "models").mkdir(parents=True)
    (home / "models" / "smollm2-135m").symlink_to(smollm2)
    unset = {"SPS2_KEYS", "SPS2_MODEL", "SPS2_CLUSTER"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {
        "SPS2_HOME": str(home),
        "SPS2_CONFIG": str(FOLDER / "container.toml"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    log = tmp_path / "log"
    with log.open("w") as file:
        container = subprocess.Popen(
            [FOLDER / "serve.sh", "--port", str(port)],
            env=environment,
            stdout=file,
            stderr=file,
            cwd=home,
        )
    try:
        until_s = time.monotonic() + 240
        while "is ready after" not in log.read_text():
            assert container.poll() is None, log.read_text()
            assert time.monotonic() < until_s, log.read_text()
            time.sleep(0.2)
        status = subprocess.run(["spsctl", "status"], env=environment, capture_output=True)
        assert status.returncode == 0, "the image's health check"
        added = subprocess.run(
            ["spsctl", "keys", "api", "add", "me"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        key = added.stdout.split()[-1]
        assert key not in log.read_text()
        for address in addresses.of("0.0.0.0"):
            assert ask(f"http://{address}:{port}/v1/models", None)[0] == 401
            code, said = ask(f"http://{address}:{port}/v1/models", key)
            assert (code, json.loads(said)["data"][0]["id"]) == (200, "smollm2-135m")
        code, said = ask(
            f"http://127.0.0.1:{port}/v1/completions",
            key,
            {"model": "smollm2-135m", "prompt": "One, two,", "max_tokens": 4},
        )
        assert (code, json.loads(said)["usage"]["completion_tokens"]) == (200, 4)
        container.send_signal(signal.SIGTERM)
        assert container.wait(60) == 0, log.read_text()
    finally:
        container.kill()
        container.wait()


def test_what_is_asked_for_reaches_spsctl(tmp_path: Path) -> None:
    """SPS2_MODEL and further arguments; keys that are there are not made anew."""
    home, tools = tmp_path / "home", tmp_path / "bin"
    (home / "keys").mkdir(parents=True)
    (home / "keys" / "cluster.key").touch()
    tools.mkdir()
    said = tools / "spsctl"
    said.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    said.chmod(0o755)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SPS2_HOME": str(home),
        "SPS2_MODEL": "hf:some/model",
    }
    argv = [FOLDER / "serve.sh", "--prefill", "2"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        *("up", "--config", "/etc/sps2/container.toml", "--keys", str(home / "keys")),
        *("--model", "hf:some/model", "--prefill", "2"),
    ]
