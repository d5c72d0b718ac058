"""Texts to measure on: from Python or the operating system, or files; imports no torch."""

import sysconfig
from collections.abc import Callable
from pathlib import Path

from sps2.common.errors import Invalid


def read(name: str) -> str:
    """The text of a built-in document, or of a file in UTF-8.

    Raises:
        Invalid: the document is not on this machine; the message lists the built-in ones.
    """
    find = BUILT_IN.get(name)
    try:
        if find is not None:
            return find()
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (ImportError, OSError, UnicodeDecodeError) as error:
        kind = "is not on this machine" if find is not None else "is no file in UTF-8"
        known = ", ".join(BUILT_IN)
        raise Invalid(
            f"document {name!r} {kind} ({error}); built in are {known}; others are given by path"
        ) from error


def _licence() -> str:
    folder = Path("/usr/share/common-licenses")  # on Debian and its derivatives
    return "\n\n".join(
        (folder / name).read_text(encoding="utf-8") for name in ("GPL-3", "GFDL-1.3")
    )


def _manual() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


def _code() -> str:
    return _library("argparse.py")


def _page() -> str:
    return _library("idlelib/help.html")


def _table() -> str:
    return _library("html/entities.py")


def _library(path: str) -> str:
    return (Path(sysconfig.get_path("stdlib")) / path).read_text(encoding="utf-8")


BUILT_IN: dict[str, Callable[[], str]] = {
    "licence": _licence,
    "manual": _manual,
    "code": _code,
    "page": _page,
    "table": _table,
}
"""Legal English, the reference of the Python language, source code, HTML, and a table of names."""
