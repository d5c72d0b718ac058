"""The record that a benchmark leaves under benchmarks/results/."""

import datetime
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
from machine import machine

RESULTS = Path(__file__).parent / "results"


def write(name: str, found: dict[str, object]) -> Path:
    """Write what was found with date, commit, command and machine as JSON; returns where it is."""
    now = datetime.datetime.now(datetime.UTC)
    script = Path(sys.argv[0]).name
    record = {
        "date": now.isoformat(timespec="seconds"),
        "commit": COMMIT,
        "command": shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
        "machine": machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now:%Y-%m-%d-%H%M}-{name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record | found), indent=1) + b"\n")
    return path


def _commit() -> str:
    """The commit that is checked out, "-dirty" if files differ from it; empty without git."""
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--abbrev=12", "--dirty"]
    try:
        done = subprocess.run(
            [*git, "--exclude=*"], capture_output=True, encoding="utf-8", timeout=60
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


COMMIT = _commit()
"""Of the code that is measured: files may change while a benchmark runs."""
