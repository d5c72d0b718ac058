"""The stages of bench-gpu: each takes about a minute, and its results are written when it ends."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gpu_timing import Row, show


class Stage(NamedTuple):
    """name: in the record. title: of its table. rows: measures one row after the other."""

    name: str
    title: str
    rows: Callable[[], Iterator[Row]]


def run(
    stages: Sequence[Stage], record: dict[str, object], path: Path, limit_s: float
) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """Run stages in order; writes `record` with their rows to `path` after each.

    A stage that has taken `limit_s` begins no other row, and one that fails ends: the record says
    so under `unfinished`, and the next stage follows.

    Returns:
        The rows of each stage, and why some stages are not finished.
    """
    unfinished: dict[str, str] = {}
    found: dict[str, list[Row]] = {}
    for stage in stages:
        rows = found[stage.name] = []
        begun_s = time.monotonic()
        try:
            for row in stage.rows():
                rows.append(row)
                if time.monotonic() - begun_s > limit_s:
                    unfinished[stage.name] = f"stopped after {len(rows)} rows: {limit_s:.0f} s"
                    break
        except Exception as error:
            unfinished[stage.name] = f"{type(error).__name__}: {error}"
        took_s = round(time.monotonic() - begun_s, 1)
        if rows:
            show(f"{stage.title} ({took_s} s)", rows)
        if stage.name in unfinished:
            print(f"\n{stage.name}: {unfinished[stage.name]}", flush=True)
        _write({**record, **found, "unfinished": unfinished}, path)
    return found, unfinished


def _write(record: dict[str, object], path: Path) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
