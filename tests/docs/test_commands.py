"""Commands that pages show exist: subcommands, options, make targets, files; Python compiles."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "benchmarks")
    for path in folder.glob("*.md")
    if path.name != "CHANGELOG.md"
]
COMMANDS = dict(
    re.findall(
        r"^## spsctl (.*?)\n(.*?)(?=^## |\Z)",
        (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"),
        flags=re.M | re.S,
    )
)
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
ENDS = {"|", "||", "&&", ";", ">", "<"}


def lines(page: Path) -> list[list[str]]:
    """The words of every command in the page's blocks of console, one list a command."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), flags=re.M | re.S):
        for line in re.findall(r"^\$ (.*)$", block.replace("\\\n", " "), flags=re.M):
            words = shlex.split(line, comments=True)
            start = 0
            for at, word in enumerate([*words, ";"]):
                if word in ENDS:
                    found.append(words[start:at])
                    start = at + 1
    return [[word for word in words if not re.match(r"[A-Z0-9_]+=", word)] for words in found]


def wrong(words: list[str]) -> str:
    """What is wrong with a command; empty if nothing is, or it is not ours."""
    while words and words[0] in ("nice", "sudo"):
        words = words[1:]
    match words:
        case ["spsctl", *rest]:
            return wrong_for_spsctl(rest)
        case ["make", target, *_] if target not in TARGETS:
            return f"no target {target}"
        case [python, file, *_] if "python" in python and file.endswith(".py"):
            return "" if (ROOT / file).exists() else f"no file {file}"
    return ""


def wrong_for_spsctl(words: list[str]) -> str:
    if words in (["COMMAND", "--help"], ["--install-completion"], ["--version"]):
        return ""
    name = next((" ".join(words[:n]) for n in (3, 2, 1) if " ".join(words[:n]) in COMMANDS), None)
    if name is None:
        return f"no command {words[:2]}"
    known = set(re.findall(r"`(--?[\w-]+)`", COMMANDS[name])) | {"--help"}
    given = {word.split("=")[0].strip("[]") for word in words if re.match(r"\[?--?[a-zA-Z]", word)}
    return f"{name} has no {given - known}" if given - known else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    for words in lines(page):
        assert not wrong(words), f"{' '.join(words)}: {wrong(words)}"


@pytest.mark.parametrize(
    "command",
    ["spsctl nosuch", "spsctl up --nosuch", "make nosuch", "python benchmarks/nosuch.py"],
)
def test_what_does_not_exist_is_found(command: str) -> None:
    assert wrong(command.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_compiles(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S):
        compile(block, page.name, "exec")
