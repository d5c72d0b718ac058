"""Machines, each with a home of its own, that run `spsctl up --invite` and `spsctl join`."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from msgspec.structs import replace

from sps2.common.client import AsyncClient
from sps2.common.keys import join_code
from sps2.common.messages import ClusterStatus

CODE = re.compile(r"spsctl join (\S+)")
JOINED = "This machine is in"


class Process:
    """`spsctl` at work, with what it has printed."""

    def __init__(self, home: Path, *arguments: object) -> None:
        home.mkdir(exist_ok=True)
        self._output = home / f"{arguments[0]}-{time.time_ns()}.out"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sps2.cli.main", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"SPS2_HOME": str(home)},
            )

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def until(self, text: str) -> str:
        """Wait until it has printed a text; returns all that it has printed."""
        while text not in self.output:
            assert self._process.poll() is None, self.output
            time.sleep(0.05)
        return self.output

    def interrupt(self) -> int:
        """End it as a user does, by a signal; returns its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait()

    def signal(self) -> None:
        """As `interrupt`, without waiting."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self._process.wait()

    def kill(self) -> None:
        """End it and all that it has started at once, as a plug that is pulled."""
        tree = [self._process.pid]
        tree += [child.pid for child in psutil.Process(tree[0]).children(recursive=True)]
        for pid in tree:
            os.kill(pid, signal.SIGKILL)
        self._process.wait()

    @property
    def is_up(self) -> bool:
        return self._process.poll() is None


@contextmanager
def running(home: Path, *arguments: object) -> Iterator[Process]:
    """A process that has ended after the block."""
    process = Process(home, *arguments)
    try:
        yield process
    finally:
        if process.is_up:
            process.interrupt()


def spsctl(home: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """A command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "sps2.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"SPS2_HOME": str(home)},
    )


def code_in(output: str) -> str:
    found = CODE.search(output)
    assert found is not None, output
    return found[1]


def outdated(code: str) -> str:
    """The same code from when the first machine had another address."""
    return join_code.encode(replace(join_code.decode(code), address="10.77.0.99"))


def states(status: ClusterStatus) -> dict[str, str]:
    return {shard.id: shard.state for shard in status.shards}


async def released(client: AsyncClient) -> ClusterStatus:
    """The status once no request holds anything any more."""
    while (status := await client.status()).leases or status.requests:
        await asyncio.sleep(0.1)
    return status
