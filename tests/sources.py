"""Source files as syntax trees."""

import ast
from pathlib import Path


def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file.

    CPython 3.11 fails where something else parses at the same time, for example a traceback that is
    logged by a finaliser (gh-106905); then the file is parsed once more.
    """
    text = path.read_text(encoding="utf-8")
    try:
        return ast.parse(text)
    except SystemError:
        return ast.parse(text)
