"""Text is read and written as UTF-8 whatever the locale: every place names its encoding."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from .sources import tree_of

ROOT = Path(__file__).parent.parent
FOLDERS = ["cli", "common", "compose", "kernels", "services", "benchmarks", "docs", "examples"]
"""Not tests: what they write is plain ASCII, or read by what is tested here."""
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
WHERE = {"read_text": 0, "write_text": 1}
"""Which argument the encoding may be."""
MODES = {"open": 0, "fdopen": 1, "NamedTemporaryFile": 0, "TemporaryFile": 0}
"""Which argument is the mode, of a method; the function `open` has the path before it."""


def careless(tree: ast.AST) -> Iterator[int]:
    """Lines of calls that leave the encoding to the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else name
        named = {each.arg: each.value for each in node.keywords}
        if "encoding" in named or None in named:
            continue
        texts = name in WHERE and method and len(node.args) <= WHERE[name]
        opened = name in MODES and is_text(node, name, method, named.get("mode"))
        asked = [named[each] for each in ("text", "universal_newlines") if each in named]
        if texts or opened or any(isinstance(e, ast.Constant) and e.value is True for e in asked):
            yield node.lineno


def is_text(node: ast.Call, name: str, method: bool, mode: ast.expr | None) -> bool:
    """Whether a file is opened for text; what has no mode, or none of a file's, is no file."""
    place = MODES[name] + (name == "open" and not method)
    if mode is None and len(node.args) > place:
        mode = node.args[place]
    if mode is None:
        return name in ("open", "fdopen")
    return isinstance(mode, ast.Constant) and {*str(mode.value)} <= {*"rwaxt+"}


def test_every_text_file_names_its_encoding() -> None:
    found = {
        str(path.relative_to(ROOT)): lines
        for path in SOURCES
        if (lines := list(careless(tree_of(path))))
    }
    assert not found, "give encoding='utf-8' in these lines"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(text)", True),
        ("path.write_text(text, encoding='utf-8')", False),
        ("open(path)", True),
        ("open(path, 'rb')", False),
        ("path.open()", True),
        ("path.open('a')", True),
        ("path.open('wb')", False),
        ("os.fdopen(file, 'w')", True),
        ("os.open('/path', os.O_RDONLY)", False),
        ("inboxes.open('name', 0)", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, encoding='utf-8')", False),
        ("Part(text=text)", False),
    ],
)
def test_the_guard_sees(code: str, found: bool) -> None:
    assert bool(list(careless(ast.parse(code)))) == found
