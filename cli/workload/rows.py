"""Rows of trace files, and what may be wrong with them."""

import gzip
import math
import zlib
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from sps2.common.errors import Invalid

LARGEST = 1 << 40
"""Larger numbers in a trace are mistakes."""


def broken(path: Path, row: int, problem: str) -> Invalid:
    """The error about one row; rows are counted from 1, as editors count lines."""
    return Invalid(f"{path}, row {row}: {problem}")


def first_line(path: Path) -> str:
    """The first line of a text file, empty if there is none; raises as `lines`."""
    with closing(lines(path)) as rows:
        return next(rows, "")


def lines(path: Path) -> Generator[str, None, None]:
    """The lines of a text file in UTF-8, which may be compressed with gzip.

    Raises:
        Invalid: it is not such a file.
        OSError: it cannot be read.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig") as packed:
                yield from packed
        else:
            with path.open(encoding="utf-8-sig") as file:
                yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Invalid(f"{path} is no intact gzip file: {error}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is no text in UTF-8") from error


def prompt_tokens(number: float) -> int:
    """The length of a prompt. Raises ValueError, with what is wrong, unless it is positive."""
    return _whole(number, "a prompt", 1)


def answer_tokens(number: float) -> int:
    """The length of an answer; 0 counts as 1, since every request has a first token."""
    return max(1, _whole(number, "an answer", 0))


def seconds(number: float, what: str) -> float:
    """A time. Raises ValueError, with what is wrong, unless it is finite and not negative."""
    if not 0 <= number < LARGEST:
        raise ValueError(f"{what} of {number:g} s")
    return number


def _whole(number: float, what: str, least: int) -> int:
    if math.isnan(number) or not least <= number < LARGEST or number != int(number):
        raise ValueError(f"{what} of {number:g} tokens; whole numbers from {least} on are lengths")
    return int(number)
