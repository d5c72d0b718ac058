"""What the commands say and return when there is no cluster, and that they start fast."""

import json
import socket
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sps2.cli.main import app
from sps2.cli.runs import RunFolder
from sps2.common import config, config_text
from sps2.common.config import Cluster


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    return tmp_path


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


def test_version() -> None:
    assert run("version").stdout.strip() == version("sps2")


def test_config_prints_what_load_accepts(tmp_path: Path) -> None:
    text = run("config").stdout
    assert tomllib.loads(text)["gateway"]["port"] == 8000
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    assert config.load(path) == Cluster()


def test_up_of_a_configuration_with_a_typo(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text("prefil = 2\n")
    result = run("up", "--config", str(path))
    assert result.exit_code == 1
    assert "prefil" in result.stderr
    assert "Traceback" not in result.output


def test_up_of_a_model_that_is_not_here() -> None:
    result = run("up", "--model", "some-model")
    assert result.exit_code == 1
    assert "spsctl pull some-model" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--prefill", "0"], ["--port", "0"], ["--decode", "two"], ["--no-such-option"]],
)
def test_up_with_wrong_usage(arguments: list[str]) -> None:
    assert run("up", *arguments).exit_code == 2


@pytest.mark.parametrize(
    ("file", "flags", "message"),
    [
        ("", ["--any", "2", "--prefill", "1"], "1 prefill and 0 decode shards"),
        ("prefill = 4\ndecode = 3", ["--any", "2"], "4 prefill and 3 decode shards"),
        ("any = 2", ["--decode", "1"], "besides 2 of them there can be no others"),
        ("any = 2", ["--tp", "2"], "one process"),
        ("any = 2\n[sharing]\nmethod = 'ring'", [], "another sharing.method"),
        ("prefill = 0", [], "or shards that do both"),
    ],
)
def test_shards_that_do_both_stand_alone(
    tmp_path: Path, file: str, flags: list[str], message: str
) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(file)
    result = run("up", "--config", str(path), *flags)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_any_alone_is_a_whole_cluster(tmp_path: Path) -> None:
    cluster = config.load(any=2)
    assert (cluster.prefill, cluster.decode, cluster.any) == (0, 0, 2)
    path = tmp_path / "cluster.toml"
    path.write_text(config_text.dump(cluster, "test"))
    assert config.load(path) == cluster


def test_up_with_a_policy_there_is_none_of(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    result = run("up", "--policy", "none", "--model", str(tmp_path / "model"))
    assert result.exit_code == 1
    assert "none" in result.stderr


def test_down_of_nothing() -> None:
    assert run("down").exit_code == 0
    result = run("down", "--name", "other")
    assert result.exit_code == 0
    assert "not up" in result.stdout


@pytest.mark.parametrize("command", [["status"], ["chat", "hello"], ["complete", "hello"]])
def test_commands_without_a_cluster(command: list[str]) -> None:
    result = run(*command)
    assert result.exit_code == 1
    assert "spsctl up" in result.stderr


def test_status_while_the_gateway_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sps2.cli.status.DEADLINE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    folder = RunFolder("default")
    folder.prepare(Cluster(gateway=config.Gateway(bus_port=port)))
    with folder.owned():
        result = run("status", "--json")
        assert run("status").exit_code == 1
    assert result.exit_code == 1
    status = json.loads(result.stdout)
    assert status["ready"] is False
    assert str(port) in status["waiting_for"]


def test_complete_needs_something_to_say(tmp_path: Path) -> None:
    assert run("complete").exit_code == 2
    RunFolder("default").prepare(Cluster())
    with RunFolder("default").owned():
        assert "empty" in run("complete", "-").stderr
        assert "cannot read" in run("complete", "--file", str(tmp_path / "none.txt")).stderr
        (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
        assert "UTF-8" in run("complete", "--file", str(tmp_path / "bad.txt")).stderr


def test_an_unknown_command_is_wrong_usage() -> None:
    assert run("serve").exit_code == 2


def test_help_starts_without_the_heavy_libraries() -> None:
    code = (
        "import sys; sys.argv = ['spsctl', '--help']\n"
        "from sps2.cli.main import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'fastapi'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
