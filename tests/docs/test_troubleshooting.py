"""Every message that docs/troubleshooting.md quotes is one that the code gives."""

import ast
import re
from pathlib import Path

import pytest

from ..sources import tree_of

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()


def quoted() -> list[str]:
    """The messages in the first column of the tables with what is said."""
    found, saying = [], False
    for line in PAGE.splitlines():
        if not line.startswith("|"):
            saying = False
        elif line.startswith("| what is said |"):
            saying = True
        elif saying and not line.startswith("|---"):
            found += [text for _, text in re.findall(r"(`+)(.+?)\1", line.split(" | ")[0])]
    return found


@pytest.fixture(scope="module")
def texts() -> str:
    """All strings of the sources, f-strings without what is put in."""
    lines = []
    for folder in ("cli", "common", "services"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(tree_of(path)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    lines.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                    lines.append("".join(map(str, parts)))
    return "\n".join(lines)


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_one_that_the_code_gives(message: str, texts: str) -> None:
    parts = re.split(r"'?\.\.\.'?", message)
    fixed = [re.escape(part.strip()) for part in parts if part.strip()]
    assert re.search(r"[^\n]*?".join(fixed), re.sub(r"%[.\d]*[sf]", "\0", texts)), message
