"""Fuzzes what reads from outside: `python -m tests.fuzz.run --targets gguf,http --seconds 600`.

Each target changes valid inputs by seeds and feeds them to the real parser. An error in words is
well; any other error, a hang, a crash, and memory, objects or descriptors that grow are findings.
A finding is printed with its seed, and its input is written below `--out`. `--seed N --count 1`
repeats it. Each target runs in a process of its own.
"""

import argparse
import asyncio
import faulthandler
import logging
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import watch
from .targets import TARGETS
from .watch import Report

SECONDS = 600.0
ROOM_BYTES = 12 << 30
"""Address space that an input may take: more is a MemoryError instead of the machine's end."""
LATE_S = 900.0
"""After the time that was given, a process ends by force."""


def here(name: str, arguments: argparse.Namespace, out: Path) -> Report:
    """Fuzz one target in this process."""
    resource.setrlimit(resource.RLIMIT_AS, (ROOM_BYTES, resource.RLIM_INFINITY))
    faulthandler.enable()
    logging.basicConfig(level=logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="sps2-fuzz-") as home:
        os.environ["SPS2_HOME"] = home
        folder = Path(home) / name
        folder.mkdir()
        target = TARGETS[name](folder)
        report = asyncio.run(
            watch.tried(
                target,
                arguments.seed,
                count=arguments.count,
                seconds=arguments.seconds,
                current=out / f"{name}.seed",
            )
        )
        for finding in report.findings:
            if finding.seed >= 0:
                pieces = target.case(random.Random(f"{name} {finding.seed}"))
                for number, piece in enumerate(pieces):
                    (out / f"{name}-{finding.seed}.{number}").write_bytes(piece)
    return report


def apart(name: str, arguments: argparse.Namespace, out: Path) -> bool:
    """Fuzz one target in a process of its own; returns whether nothing was found."""
    command = [sys.executable, "-m", "tests.fuzz.run", "--targets", name, "--here"]
    command += ["--seed", str(arguments.seed), "--seconds", str(arguments.seconds)]
    command += ["--count", str(arguments.count)] if arguments.count is not None else []
    command += ["--out", str(out)]
    (out / f"{name}.seed").unlink(missing_ok=True)
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(arguments.seconds + LATE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    print((out / f"{name}.log").read_text(errors="replace").rstrip(), flush=True)
    if code not in (0, 1):
        seed = out / f"{name}.seed"
        which = seed.read_text().strip() if seed.exists() else "?"
        print(f"{name}: its process ended with {code} at seed {which}", flush=True)
    return code == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", default=",".join(TARGETS), help="names, with commas")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each target")
    parser.add_argument("--count", type=int, help="inputs of each target, in place of a time")
    parser.add_argument("--seed", type=int, default=1, help="of the first input")
    parser.add_argument("--together", type=int, default=1, help="targets at a time")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="for findings")
    parser.add_argument("--here", action="store_true", help="in this process; one target")
    arguments = parser.parse_args()
    names = arguments.targets.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"there is no target {unknown[0]}; there are {', '.join(TARGETS)}")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if arguments.here:
        reports = [here(name, arguments, out) for name in names]
        print("\n".join(line for report in reports for line in report.lines()))
        return int(any(report.findings for report in reports))
    since_s = time.monotonic()
    with ThreadPoolExecutor(arguments.together) as pool:
        well = list(pool.map(lambda name: apart(name, arguments, out), names))
    print(
        f"{sum(well)} of {len(names)} targets without a finding, {time.monotonic() - since_s:.0f} s"
    )
    return int(not all(well))


if __name__ == "__main__":
    sys.exit(main())
