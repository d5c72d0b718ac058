"""Control groups that limit the processor time of what runs in them (version 1, as root)."""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from links_network import Unavailable

ROOT = Path("/sys/fs/cgroup/cpu")
PREFIX = "sps2-boxes-"
PERIOD_US, LEAST_US = 5_000, 1_000
"""The kernel gives no less than `LEAST_US` in a period."""
EMPTY_S = 10.0
"""How long processes that were killed may still be counted as members."""


@contextmanager
def limits(shares: Mapping[str, float]) -> Iterator[dict[str, str]]:
    """A control group for each name, with a share of one core, while the block runs.

    Yields:
        Their folders: a process joins one by writing its id to `cgroup.procs`.

    Raises:
        Unavailable: there can be none here.
    """
    _remove_stale()
    made: dict[str, Path] = {}
    try:
        for name, share in shares.items():
            made[name] = ROOT / f"{PREFIX}{os.getpid()}-{name}"
            _make(made[name], share)
        yield {name: str(path) for name, path in made.items()}
    finally:
        for path in made.values():
            _remove(path)


def _make(path: Path, share: float) -> None:
    period_us = max(PERIOD_US, round(LEAST_US / share))
    try:
        path.mkdir()
        (path / "cpu.cfs_period_us").write_text(str(period_us), "ascii")
        (path / "cpu.cfs_quota_us").write_text(str(round(share * period_us)), "ascii")
    except OSError as error:
        raise Unavailable(
            f"processor time cannot be limited, which needs root and control groups of version 1 "
            f"at {ROOT}: {error}"
        ) from error


def _remove(path: Path) -> None:
    until_s = time.monotonic() + EMPTY_S
    while path.exists() and time.monotonic() < until_s:
        with suppress(OSError):
            path.rmdir()
            return
        time.sleep(0.05)


def _remove_stale() -> None:
    """Remove what a run left behind that was killed."""
    for path in ROOT.glob(f"{PREFIX}*"):
        pid = re.match(rf"{PREFIX}(\d+)-", path.name)
        if pid and not Path(f"/proc/{pid[1]}").exists():
            _remove(path)
