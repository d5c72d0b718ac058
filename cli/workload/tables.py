"""Traces in CSV: those of Azure, which have times, and those of Sarathi, which have none."""

import csv
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from sps2.cli.workload.requests import Turn
from sps2.cli.workload.rows import answer_tokens, broken, first_line, lines, prompt_tokens

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
"""Columns of the traces of 2023 and 2024 in github.com/Azure/AzurePublicDataset."""
SARATHI = ("num_prefill_tokens", "num_decode_tokens")
"""Columns of the traces of github.com/microsoft/sarathi-serve and vattention; others follow."""


def has_times(path: Path) -> bool:
    """Whether a table tells when its requests came. Raises Invalid if its columns are unknown."""
    return _columns(path, _header(path)) == AZURE


def read_table(path: Path) -> Iterator[Turn]:
    """The requests of a table in the order of its rows, with times as they are there, or 0."""
    columns = _columns(path, _header(path))
    make = _azure if columns == AZURE else _sarathi
    return _rows(path, columns, make)


def _header(path: Path) -> list[str]:
    first = first_line(path)
    return next(csv.reader([first]), [])


def _columns(path: Path, header: list[str]) -> tuple[str, ...]:
    for columns in (AZURE, SARATHI):
        if set(columns) <= set(header):
            return columns
    missing = min(
        ([name for name in columns if name not in header] for columns in (AZURE, SARATHI)), key=len
    )
    raise broken(
        path,
        1,
        f"no column {', '.join(missing)}; known are {','.join(AZURE)} (Azure) and "
        f"{','.join(SARATHI)} (Sarathi)",
    )


def _rows(
    path: Path, columns: tuple[str, ...], make: Callable[[list[str]], Turn]
) -> Iterator[Turn]:
    with closing(lines(path)) as text:
        rows = csv.reader(text)
        header = next(rows)
        places = [header.index(name) for name in columns]
        try:
            for row in rows:
                if not row:
                    continue
                try:
                    yield make([row[place].strip() for place in places])
                except IndexError:
                    raise broken(path, rows.line_num, f"only {len(row)} columns") from None
                except ValueError as error:
                    raise broken(path, rows.line_num, str(error)) from error
        except csv.Error as error:
            raise broken(path, rows.line_num, str(error)) from error


def _azure(cells: list[str]) -> Turn:
    return Turn(_time(cells[0]), prompt_tokens(_number(cells[1])), answer_tokens(_number(cells[2])))


def _sarathi(cells: list[str]) -> Turn:
    return Turn(0.0, prompt_tokens(_number(cells[0])), answer_tokens(_number(cells[1])))


def _time(text: str) -> float:
    """Seconds since 1970; `2023-11-16 18:17:03.9799600` is in UTC, as it names no zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time such as 2023-11-16 18:17:03.98") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
