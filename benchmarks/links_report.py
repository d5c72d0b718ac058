"""What was measured over slow links: its table, and its record."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec
import record

from sps2.common.api.usage import Sps2Usage


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
    refusal: str
    other_cores: float
    """How many cores worked for somebody else meanwhile, on average."""
    answer_s: float
    """Seconds to the end of the answer."""

    def __str__(self) -> str:
        if self.usage is None:
            return f"{self.case}: refused: {self.refusal}"
        return f"{self.case}: {self.usage.ttft_ms / 1e3:.2f} s ({self.other_cores:.1f} cores taken)"


@dataclass(frozen=True)
class Row:
    """Medians of the repeats of one case."""

    setting: Setting
    case: str
    repeats: int
    ttft_s: float
    ratio: float
    """To the baseline's TTFT: the median of the ratios within each repeat."""
    answer_s: float
    answer_ratio: float
    """To the baseline's."""
    exchange_bytes: float
    predicted_exchange_bytes: float
    hidden_fraction: float
    kept_fraction: float
    other_cores: float


def rows(samples: Sequence[Sample], baseline: str) -> list[Row]:
    """One for each setting and case that was served, in the order in which they were begun."""
    bases: dict[tuple[Setting, int], Sps2Usage] = {}
    answers: dict[tuple[Setting, int], float] = {}
    cases: dict[tuple[Setting, str], list[tuple[Sample, Sps2Usage]]] = {}
    for sample in samples:
        if sample.usage:
            cases.setdefault((sample.setting, sample.case), []).append((sample, sample.usage))
            if sample.case == baseline:
                bases[sample.setting, sample.repeat] = sample.usage
                answers[sample.setting, sample.repeat] = sample.answer_s
    return [
        Row(
            setting,
            case,
            len(served),
            median(usage.ttft_ms for _, usage in served) / 1e3,
            median(
                usage.ttft_ms / bases[setting, sample.repeat].ttft_ms for sample, usage in served
            ),
            median(sample.answer_s for sample, _ in served),
            median(sample.answer_s / answers[setting, sample.repeat] for sample, _ in served),
            median(usage.exchange_bytes for _, usage in served),
            median(usage.predicted_exchange_bytes for _, usage in served),
            median(usage.hidden_fraction for _, usage in served),
            median(usage.kept_fraction for _, usage in served),
            median(sample.other_cores for sample, _ in served),
        )
        for (setting, case), served in cases.items()
    ]


def table(found: Sequence[Row]) -> str:
    """As Markdown. Bytes are those of the whole group; MB are 10^6 bytes."""
    columns = (
        "link",
        "tokens",
        "SP",
        "method",
        "TTFT",
        "ratio",
        "answer",
        "ratio",
        "exchanged",
        "predicted",
        "hidden",
        "kept",
        "cores taken",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in found:
        rate, tokens, sp_degree = row.setting
        cells = (
            f"{rate} Mbit/s" if rate else "no limit",
            tokens,
            sp_degree,
            row.case,
            f"{row.ttft_s:.2f} s",
            f"{row.ratio:.2f}",
            f"{row.answer_s:.2f} s",
            f"{row.answer_ratio:.2f}",
            f"{row.exchange_bytes / 1e6:.1f} MB",
            f"{row.predicted_exchange_bytes / 1e6:.1f} MB",
            f"{row.hidden_fraction:.0%}",
            f"{row.kept_fraction:.0%}",
            f"{row.other_cores:.1f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def write(samples: Sequence[Sample], found: Sequence[Row], options: dict[str, object]) -> Path:
    """The record of a run as JSON, with every sample; returns where it is."""
    rows, every = ([_flat(msgspec.to_builtins(each)) for each in side] for side in (found, samples))
    return record.write("links", {"options": options, "rows": rows, "samples": every})


def _flat(fields: dict[str, object]) -> dict[str, object]:
    """Its setting's fields by their names."""
    setting = fields.pop("setting")
    assert isinstance(setting, tuple)
    return dict(zip(Setting._fields, setting, strict=True)) | fields
