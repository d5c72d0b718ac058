"""What `spsctl top` costs: CPU seconds per second, in terminals of two sizes.

    python benchmarks/top.py [--shards 10] [--requests 12] [--seconds 20]

The shards are their telemetry alone (`top_cluster.py`), so that nothing else takes the machine's
time.
"""

import argparse
import asyncio
import json
import os
import pty
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import ioctl
from pathlib import Path
from sys import executable
from termios import TIOCSWINSZ

import psutil
from machine import machine
from top_cluster import Actors

from sps2.cli import ports
from sps2.common import config
from sps2.common.config import Cluster
from sps2.common.config import text as config_text

SIZES = ((80, 24), (200, 50))
WARM_S = 6.0
"""From the first screen on, until everyone was heard."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    prefill = given.shards // 2
    cluster = config.load(
        port=ports.free_base(), name="actors", prefill=prefill, decode=given.shards - prefill
    )
    print(json.dumps(machine()))
    with tempfile.TemporaryDirectory() as folder, acting(cluster, given.requests):
        file = Path(folder) / "cluster.toml"
        file.write_text(config_text.dump(cluster, "actors"), encoding="utf-8")
        for width, height in SIZES:
            share = cost(file, width, height, given.seconds)
            print(f"{width}x{height}: {share:.4f} CPU s/s with {given.shards} shards")


@contextmanager
def acting(cluster: Cluster, requests: int) -> Iterator[None]:
    """The telemetry of a cluster, in a thread."""
    loop = asyncio.new_event_loop()
    work = loop.create_task(Actors(cluster, requests).run())

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(work)
        except asyncio.CancelledError:
            loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    loop.call_soon_threadsafe(work.cancel)
    thread.join()


def cost(file: Path, width: int, height: int, seconds: float) -> float:
    """CPU seconds per second of `spsctl top` in a terminal of that size."""
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    command = [executable, "-m", "sps2.cli.main", "top", "--config", str(file)]
    environment = {**os.environ, "TERM": "xterm-256color"}
    top = subprocess.Popen(command, stdin=theirs, stdout=theirs, env=environment)
    os.close(theirs)
    written = [0]

    def read() -> None:
        with suppress(OSError):  # the terminal's other end is closed
            while data := os.read(ours, 1 << 16):
                written[0] += len(data)

    threading.Thread(target=read, daemon=True).start()
    process = psutil.Process(top.pid)
    while not written[0] and top.poll() is None:
        time.sleep(0.1)
    time.sleep(WARM_S)
    before = process.cpu_times()
    since_s = time.monotonic()
    time.sleep(seconds)
    after = process.cpu_times()
    took_s = time.monotonic() - since_s
    assert top.poll() is None, "top ended early"
    assert written[0] > 10_000, "top drew nothing"
    top.terminate()
    top.wait()
    return float(after.user + after.system - before.user - before.system) / took_s


if __name__ == "__main__":
    main()
