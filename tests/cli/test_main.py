"""What the commands say and return when there is no cluster, and that they start fast."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sps2.cli import launch, ports
from sps2.cli.main import app
from sps2.cli.runs import RunFolder
from sps2.common import config
from sps2.common.config import Cluster
from sps2.common.config import text as config_text


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    return tmp_path


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


def test_version() -> None:
    """A release's, or a development version that names its commit."""
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+(\+\S+)?)?\n", run("--version").stdout)


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
    said = " ".join(result.stderr.split())
    assert "'some-model' is not in" in said
    assert "give smollm2-135m, hf:ORG/NAME, a folder or a .gguf file" in said
    assert "spsctl pull" not in said  # which would fail


def test_pull_of_the_model_that_a_configuration_names(
    tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    folder, file = checkpoint("llama2"), tmp_path / "cluster.toml"
    file.write_text(f"# model = 'another'\nmodel='{folder}'  # as TOML allows\n")
    assert run("pull", "--config", str(file)).stdout.strip() == str(folder)
    for both_or_none in ([], [str(folder), "--config", str(file)]):
        result = run("pull", *both_or_none)
        assert result.exit_code == 2
        assert "give a model, or --config FILE" in " ".join(result.stderr.split())


def test_up_pulls_what_can_be_pulled(
    tmp_path: Path, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the port that is taken; the pull is of a file that is there, and is none."""
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF, or not")
    result = run("up", "--model", str(file))
    assert result.exit_code == 1
    assert "tiny.gguf is not here yet: pulling it" in " ".join(result.stderr.split())
    assert "tiny.gguf" in result.stderr.splitlines()[-1]
    assert not list((tmp_path / "models").iterdir())  # not even a lock
    assert all(result.stderr.splitlines()), "a progress bar that is not shown leaves no empty line"


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--prefill", "0"],
        ["up", "--port", "0"],
        ["up", "--decode", "two"],
        ["up", "--no-such-option"],
        ["up", "--dtype", "float8"],
        ["up", "--device", "tpu"],
        ["up", "--quantize", "int3"],
        ["up", "--attention", "bogus"],
        ["up", "--policy", "none"],
        ["up", "--transport", "udp"],
        ["chat", "hi", "--attention", "foo"],
        ["complete", "hi", "--attention", "foo"],
        ["bench", "quality", "--dtype", "int8"],
        ["bench", "quality", "--spans", "odd"],
        ["keys", "api", "add", "bob", "--expires", "soon"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert arguments[-2] in result.stderr or arguments[-1] in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--transport", "udp"], "'--transport': 'udp' is not one of 'auto', 'ucx', 'tcp'"),
        (["up", "--prefill", "0"], "'--prefill': it must be at least 1"),
        (["up", "--port", "99999"], "'--port': it must be at most 65529"),
        (["up", "--decode", "two"], "'--decode': it must be a whole number"),
        (["up", "--timeout", "soon"], "'--timeout': it must be a number"),
        (["complete", "hi", "-t", "3"], "'--temperature' / '-t': it must be at most 2"),
        (["keys", "api", "add", "x", "--tokens-per-minute", "x"], ": it must be a whole number"),
        (["keys", "api", "add", "x", "--expires", "1s"], "--expires: '1s' is neither a time from"),
    ],
)
def test_wrong_values_are_told_in_plain_words(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    told = run(*arguments).stderr
    assert said in told
    assert "Input should" not in told
    assert "Value error" not in told


@pytest.mark.parametrize(
    ("command", "choices"),
    [
        ("up", ["cpu|cuda|auto", "none|int8|int4", "exact|balanced|fast", "auto|ucx|tcp", "fcfs"]),
        ("chat", ["exact|balanced|fast"]),
        ("complete", ["exact|balanced|fast"]),
    ],
)
def test_help_lists_what_can_be_chosen(
    command: str, choices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    said = run(command, "--help").stdout
    for each in choices:
        assert each in said


@pytest.mark.parametrize(
    ("file", "flags", "message"),
    [
        ("", ["--mixed", "2", "--prefill", "1"], "`prefill` is 1 and `decode` 0 here"),
        ("prefill = 4\ndecode = 3", ["--mixed", "2"], "`prefill` is 4 and `decode` 3 here"),
        ("mixed = 2", ["--decode", "1"], "beside 2 of them there can be no others"),
        ("mixed = 2", ["--tp", "2"], "one process"),
        ("mixed = 2\n[sharing]\nmethod = 'ring'", [], "another sharing.method"),
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
    cluster = config.load(mixed=2)
    assert (cluster.prefill, cluster.decode, cluster.mixed) == (0, 0, 2)
    path = tmp_path / "cluster.toml"
    path.write_text(config_text.dump(cluster, "test"))
    assert config.load(path) == cluster


def test_down_of_nothing() -> None:
    assert run("down").exit_code == 0
    result = run("down", "--name", "other")
    assert result.exit_code == 1
    assert "no cluster 'other'" in result.stderr
    RunFolder("one").prepare(Cluster(name="one"))
    result = run("down", "--name", "onne")
    assert result.exit_code == 1
    assert "there are: one" in result.stderr
    result = run("down", "--name", "one")
    assert result.exit_code == 0
    assert "not up" in result.stdout


def test_a_name_that_is_none_of_those_that_are_up() -> None:
    for name in ("one", "two"):
        RunFolder(name).prepare(Cluster(name=name))
    with RunFolder("one").owned():
        result = run("status", "--name", "onne")
        assert "or choose one that is up: one" in " ".join(result.stderr.split())
        with RunFolder("two").owned():
            assert "SPS2_CLUSTER" in run("status").stderr
    assert "there are:" in run("logs", "--name", "onne").stderr


def test_the_environment_names_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPS2_CLUSTER", "other")
    assert "cluster 'other' is not up" in run("status").stderr
    assert "no cluster 'other'" in run("down").stderr
    assert "'mine' is not up" in run("chat", "hi", "--name", "mine").stderr


def test_models_are_listed_and_removed(checkpoint: Callable[[str], Path], home: Path) -> None:
    assert "spsctl pull" in run("models").stdout
    made = checkpoint("llama3")
    for name in ("tiny", "org--name", "org--name@v1"):
        shutil.copytree(made, home / "models" / name)
    (home / "models" / ".part").mkdir()
    listed = [line.split()[0] for line in run("models").stdout.splitlines()]
    assert listed == ["MODEL", "hf:org/name", "hf:org/name@v1", "tiny"]
    assert "there are: hf:org/name, hf:org/name@v1, tiny" in run("rm", "none").stderr
    assert run("rm", "../run").exit_code == 1

    folder = RunFolder("serves")
    folder.prepare(Cluster(name="serves", model="tiny"))
    with folder.owned():
        result = run("rm", "tiny")
        assert result.exit_code == 1
        assert "spsctl down --name serves" in result.stderr
    assert run("rm", "tiny").exit_code == 0
    assert run("rm", "hf:org/name@v1").exit_code == 0
    assert {path.name for path in (home / "models").iterdir()} == {"org--name", ".part"}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("spsctl down --name o", "one"),
        ("spsctl logs --name one g", "gateway"),
        ("spsctl rm ti", "tiny"),
        ("spsctl up --device cu", "cuda"),
    ],
)
def test_the_shell_completes(
    words: str, offered: str, home: Path, checkpoint: Callable[[str], Path]
) -> None:
    shutil.copytree(checkpoint("llama3"), home / "models" / "tiny")
    folder = RunFolder("one")
    folder.prepare(Cluster(name="one"))
    folder.log("gateway").touch()
    asked = {
        "_SPSCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    code = "from sps2.cli.main import app; app(prog_name='spsctl')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True
    )
    assert done.stdout.split() == [offered], done.stderr


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
        assert "nothing to send" in run("complete", "-").stderr
        assert run("complete", "-", "-f", "-", stdin="text").exit_code == 2
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


def test_without_the_server_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    done = run("up", "--model", "smollm2-135m", "--port", str(ports.free_base()))
    assert done.exit_code == 1
    assert "torch is not installed here; to serve on this machine: pip install" in done.stderr


@pytest.mark.parametrize("command", [("scheduler", "replay"), ("explain", "cmpl-1", "--from")])
def test_a_file_that_is_no_recording(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = tmp_path / "notes.txt"
    result = run(*command, str(path))
    assert result.exit_code == 1
    assert "No such file" in result.stderr
    path.write_text("hello\n")
    result = run(*command, str(path))
    assert result.exit_code == 1
    assert "not a recording of `spsctl scheduler record`" in " ".join(result.stderr.split())
