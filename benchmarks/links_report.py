"""What was measured over slow links: its table, and its record."""

import datetime
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec
from machine import machine

from sps2.common.usage import Sps2Usage

RESULTS = Path(__file__).parent / "results"


class Setting(NamedTuple):
    """Under what conditions the cases are compared. Rate 0 is unlimited."""

    mbit_s: int
    tokens: int
    sp_degree: int

    def __str__(self) -> str:
        rate = f"{self.mbit_s} Mbit/s" if self.mbit_s else "no limit"
        return f"{rate}, {self.tokens} tokens, SP {self.sp_degree}"


@dataclass(frozen=True)
class Sample:
    """One request: what it took, or why it was refused."""

    setting: Setting
    case: str
    repeat: int
    usage: Sps2Usage | None
    refusal: str = ""

    def __str__(self) -> str:
        if self.usage is None:
            return f"{self.case}: refused: {self.refusal}"
        return f"{self.case}: {self.usage.ttft_ms / 1e3:.2f} s"


@dataclass(frozen=True)
class Row:
    """Medians of the repeats of one case."""

    setting: Setting
    case: str
    repeats: int
    ttft_s: float
    ratio: float
    """To the baseline's TTFT: the median of the ratios within each repeat."""
    exchange_bytes: float
    predicted_exchange_bytes: float
    hidden_fraction: float
    kept_fraction: float


def rows(samples: Sequence[Sample], baseline: str) -> list[Row]:
    """One for each setting and case that was served, in the order in which they were begun."""
    by_case: dict[tuple[Setting, str], dict[int, Sps2Usage]] = {}
    for sample in samples:
        if sample.usage:
            by_case.setdefault((sample.setting, sample.case), {})[sample.repeat] = sample.usage
    made = []
    for (setting, case), usages in by_case.items():
        bases = by_case.get((setting, baseline), {})
        pairs = [(usage, bases[index]) for index, usage in usages.items() if index in bases]
        if not pairs:  # interrupted
            continue
        made.append(
            Row(
                setting,
                case,
                len(pairs),
                median(usage.ttft_ms for usage, _ in pairs) / 1e3,
                median(usage.ttft_ms / base.ttft_ms for usage, base in pairs),
                median(usage.exchange_bytes for usage, _ in pairs),
                median(usage.predicted_exchange_bytes for usage, _ in pairs),
                median(usage.hidden_fraction for usage, _ in pairs),
                median(usage.kept_fraction for usage, _ in pairs),
            )
        )
    return made


def table(found: Sequence[Row]) -> str:
    """As Markdown. Bytes are those of the whole group; MB are 10^6 bytes."""
    lines = [
        "| link | tokens | SP | case | TTFT | ratio | exchanged | predicted | hidden | kept |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        rate, tokens, sp_degree = row.setting
        cells = (
            f"{rate} Mbit/s" if rate else "no limit",
            tokens,
            sp_degree,
            row.case,
            f"{row.ttft_s:.2f} s",
            f"{row.ratio:.2f}",
            f"{row.exchange_bytes / 1e6:.1f} MB",
            f"{row.predicted_exchange_bytes / 1e6:.1f} MB",
            f"{row.hidden_fraction:.0%}",
            f"{row.kept_fraction:.0%}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def write(samples: Sequence[Sample], found: Sequence[Row], options: dict[str, object]) -> Path:
    """The record of a run as JSON, with every sample; returns where it is."""
    now = datetime.datetime.now(datetime.UTC)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now:%Y-%m-%d-%H%M}-links.json"
    record = {
        "date": now.isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/links.py", *sys.argv[1:]]),
        "options": options,
        "machine": machine(),
        "rows": [_flat(msgspec.to_builtins(row)) for row in found],
        "samples": [_flat(msgspec.to_builtins(sample)) for sample in samples],
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    return path


def _flat(fields: dict[str, object]) -> dict[str, object]:
    """Its setting's fields by their names."""
    setting = fields.pop("setting")
    assert isinstance(setting, tuple)
    return dict(zip(Setting._fields, setting, strict=True)) | fields
