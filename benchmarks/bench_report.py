"""What was measured of the peers: its table, and its record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import record
from measures import Values


@dataclass(frozen=True)
class Sample:
    """One measurement of one peer. All cases of a repeat are measured in turn."""

    part: str
    setting: str
    """Under what conditions, in words."""
    case: str
    """A peer, or SPS2 asked for something special."""
    repeat: int
    values: Values
    other_cores: float
    """How many cores worked for somebody else meanwhile, on average."""

    def __str__(self) -> str:
        values = ", ".join(f"{name} {short(value)}" for name, value in self.values.items())
        return f"{self.case}: {values} ({self.other_cores:.1f} cores taken)"


@dataclass(frozen=True)
class Cell:
    """Medians of the repeats of one figure of one case."""

    part: str
    setting: str
    figure: str
    case: str
    repeats: int
    value: float
    ratio: float | None
    """The baseline's over this: the median of the ratios within each repeat."""


def short(value: float) -> str:
    """Three digits, and all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells(samples: Sequence[Sample], baseline: str) -> list[Cell]:
    """One for each figure and case, in the order in which they were begun."""
    found: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    for sample in samples:
        for figure, value in sample.values.items():
            row = found.setdefault((sample.part, sample.setting, figure), {})
            row.setdefault(sample.case, {})[sample.repeat] = value
    return [
        Cell(*key, case, len(values), median(values.values()), _ratio(row.get(baseline), values))
        for key, row in found.items()
        for case, values in row.items()
    ]


def _ratio(base: Mapping[int, float] | None, values: Mapping[int, float]) -> float | None:
    both = [number for number in values if base and base.get(number) and values[number]]
    return median(base[number] / values[number] for number in both) if base and both else None


def table(found: Sequence[Cell], baseline: str) -> str:
    """As Markdown: a row for each figure, a column for each case, ratios in brackets."""
    cases = list(dict.fromkeys(cell.case for cell in found))
    lines = [f"| | {' | '.join(cases)} |", "|---" * (len(cases) + 1) + "|"]
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for cell in found:
        with_ratio = cell.ratio is not None and cell.case != baseline
        text = short(cell.value) + (f" ({cell.ratio:.2f})" if with_ratio else "")
        rows.setdefault((cell.part, cell.setting, cell.figure), {})[cell.case] = text
    for (_, setting, figure), row in rows.items():
        values = " | ".join(row.get(case, "-") for case in cases)
        lines.append(f"| {setting}, {figure} | {values} |")
    return "\n".join(lines)


def write(
    samples: Sequence[Sample],
    found: Sequence[Cell],
    options: Mapping[str, object],
    versions: Mapping[str, str],
    problems: Sequence[str],
) -> Path:
    """The record of a run as JSON, with every sample; returns where it is."""
    return record.write(
        "peers",
        {
            "options": options,
            "versions": versions,
            "problems": problems,
            "cells": found,
            "samples": samples,
        },
    )
