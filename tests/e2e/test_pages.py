"""Whoever copies a command from a page gets what the page says: those that can run here do."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sps2.cli import ports
from sps2.common import places

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("models", "operating", "troubleshooting"))]
PYTHON = ["README.md", "docs/sdk.md"]
ELSEWHERE = {
    r"\bmake\b": "the Makefile's targets are run by whoever runs the tests",
    r"spsctl top($|\s+(-n|--json|--config)| *#)": "it ends with a key; `top --once` is run",
    r"hf:|FOLDER|model\S*\.gguf": "it needs a model that is not here",
    r"--invite|spsctl join": "it needs another machine; test_join.py has one",
    r"10\.0\.0\.1|cluster\.toml": "it needs an address that is not here",
    r"spsctl restart": "it takes a minute; test_restart.py has it",
    r"spsctl down": "the cluster is needed until the last command",
}
"""Commands that cannot run here, and why."""
ID = "cmpl-a33fa159deb8"
"""Of a request, as the pages have it."""


def commands(page: str) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / page).read_text(), flags=re.M | re.S)
    found = re.findall(r"^\$ ((?:.*\\\n)*.*)$", "".join(blocks), flags=re.M)
    return [line for line in found if not any(re.search(what, line) for what in ELSEWHERE)]


COMMANDS = [(page, command) for page in PAGES for command in commands(page)]
BLOCKS = [
    (page, block)
    for page in PYTHON
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.M | re.S)
]


class Shell:
    """Runs commands in a folder that has the examples, in a home of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = port
        (folder / "examples").mkdir()
        for path in (ROOT / "examples").iterdir():  # a long document takes the test's time alone
            (folder / "examples" / path.name).write_bytes(path.read_bytes()[:8000])
        # the pages sample without a seed or a limit: a small model may not stop for minutes
        (folder / "short.toml").write_text("[gateway]\ndefault_max_tokens = 64\n")
        self._environment = {
            **{name: value for name, value in os.environ.items() if name[:5] != "SPS2_"},
            "HOME": str(folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(places.cache().parent),
            "XDG_CONFIG_HOME": "",
            "XDG_STATE_HOME": "",
        }

    def run(self, *argv: str) -> str:
        """What the command prints; it must succeed."""
        local = [self._here(word) for word in argv]
        done = subprocess.run(
            local, cwd=self._folder, env=self._environment, capture_output=True, timeout=300
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def _here(self, text: str) -> str:
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{self._port}")
        text = text.replace("127.0.0.1:8001", f"127.0.0.1:{self._port + 1}")
        return text.replace("spsctl up ", f"spsctl up --config short.toml --port {self._port} ")


@pytest.fixture(scope="module")
def shell(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A cluster as README starts it."""
    shell = Shell(tmp_path_factory.mktemp("reader"), ports.free_base())
    (up,) = (command for _, command in COMMANDS if command.startswith("spsctl up"))
    shell.run("bash", "-c", up)
    try:
        yield shell
    finally:
        shell.run("spsctl", "down")


@pytest.mark.model
@pytest.mark.parametrize(
    ("page", "command"),
    [each for each in COMMANDS if not each[1].startswith("spsctl up")],
    ids=lambda value: value.split("#")[0].strip()[:60],
)
def test_a_command(shell: Shell, page: str, command: str) -> None:
    if ID in command:
        (known,) = re.findall(r"\b(?:chat)?cmpl-\w+", shell.run("spsctl", "trace", "-n", "1"))[:1]
        command = command.replace(ID, known)
    said = shell.run("bash", "-c", re.sub(r"\[--.*?\]", "", command))
    assert said
    assert '"error"' not in said


@pytest.mark.model
@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[page for page, _ in BLOCKS])
def test_python(shell: Shell, page: str, block: str) -> None:
    assert shell.run(sys.executable, "-c", block)
