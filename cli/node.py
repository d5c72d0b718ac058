"""Runs one service on a host for `spsctl up --hosts`, as long as the launcher is there.

`python -m sps2.cli.node` reads an order from the first line of standard input. It runs the service
until standard input ends or is silent for two minutes, so that no service is left behind. `--check`
prints as JSON what would keep the ordered services from running here.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import msgspec
from msgspec.structs import replace

from sps2.cli import ports
from sps2.cli.runs import RunFolder
from sps2.cli.services import environment, start_of
from sps2.common import keys, machine, models
from sps2.common.config import Cluster
from sps2.common.config import text as config_text
from sps2.common.errors import Invalid, Refused, ServiceError
from sps2.common.models.file_lock import locked
from sps2.services.draining import longest_s

MAX_ORDER_BYTES = 64 << 20
"""Largest order, which contains the cluster's API keys, of a few hundred bytes each."""
HEARTBEAT_S = 5.0
"""Seconds between two heartbeats of the launcher."""
SILENT_HEARTBEATS = 24
GRACE_S = 5.0
"""Seconds from SIGTERM to SIGKILL, besides those for which a shard finishes its requests."""


class Order(msgspec.Struct, frozen=True):
    """The launcher's order to a host."""

    version: str
    """The launcher's version."""
    cluster: Cluster
    services: tuple[str, ...]
    address: str
    bind: str
    home: str
    environment: dict[str, str]
    processes: int
    """The number of processes of the role with the most on this host: they share the cores."""
    here: tuple[str, ...]
    """All shard processes on this host: they share its GPUs and its memory."""
    keys: dict[str, str]
    """Key files by name; they are sent only within this order, through ssh."""

    def __repr__(self) -> str:
        return f"Order({', '.join(self.services)} at {self.address})"


class Report(msgspec.Struct, frozen=True):
    """The answer to `--check`."""

    problems: tuple[str, ...]
    now_s: float
    """This host's clock, in seconds since the epoch."""
    model: str = ""
    """The model's fingerprint, if the model is here."""


def check(order: Order) -> Report:
    """Check whether the services can run here."""
    problems: list[str] = []
    model = ""
    cluster = configured(order)
    problems += _address_problems(order)
    if not problems:
        with _noted(problems):
            ports.require_free(cluster, order.services, order.bind or order.address)
    with _noted(problems):
        model = models.fingerprint(models.locate(cluster.model))
    return Report(tuple(problems), time.time(), model)


async def run(order: Order, heard: asyncio.StreamReader) -> int:
    """Run the one service of `order` until the stream `heard` ends or falls silent.

    Returns:
        The exit status: the service's own if it ended by itself.
    """
    (service,) = order.services
    cluster = configured(order)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    folder = RunFolder(cluster.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    file = folder.path / f"{service}.toml"
    async with _alone(folder.path / f"{service}.lock", longest_s(cluster) + 2 * GRACE_S):
        if order.keys:
            cluster = replace(
                cluster, bus=replace(cluster.bus, keys=str(_keep_keys(order, folder)))
            )
        file.write_text(
            config_text.dump(cluster, f"What is in force for {service}."), encoding="utf-8"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *start_of(service, file, order.here),
            *("--host", _bound(order, service)),
            stdin=asyncio.subprocess.DEVNULL,
            cwd=folder.path,
            env=os.environ
            | environment(service, cluster.shard_threads)
            | order.environment
            | {"SPS2_SUPERVISOR_PID": str(os.getpid())},
        )
        silence = asyncio.create_task(_until_silent(heard, stop))
        stopping, ended = asyncio.create_task(stop.wait()), asyncio.create_task(process.wait())
        await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
        for task in (silence, stopping):
            task.cancel()
        if ended.done():
            status = ended.result()
            return status if status >= 0 else 128 - status
        process.terminate()
        await asyncio.wait({ended}, timeout=longest_s(cluster) + GRACE_S)
        if not ended.done():
            process.kill()
        await ended
        return 0


def read(line: bytes) -> Order:
    """Decode the order in a line of standard input.

    Raises:
        Invalid: the launcher has another version.
    """
    theirs, own = msgspec.json.decode(line, type=_Version).version, version("sps2")
    if theirs != own:
        raise Invalid(
            f"{sys.executable} has sps2 {own}, and the launcher is of version {theirs}: "
            "install one version on all hosts"
        )
    return msgspec.json.decode(line, type=Order)


class _Version(msgspec.Struct, frozen=True):
    version: str


def configured(order: Order) -> Cluster:
    """The configuration for this host; sets SPS2_HOME if the order has a `home`."""
    if order.home:
        os.environ["SPS2_HOME"] = str(Path(order.home).expanduser().absolute())
    threads = order.cluster.threads or max(1, machine.cores() // order.processes)
    return replace(order.cluster, threads=threads)


def _keep_keys(order: Order, folder: RunFolder) -> Path:
    """Write the key files on this host; returns their folder."""
    path = folder.path / "keys"
    path.mkdir(mode=0o700, exist_ok=True)
    for name, text in order.keys.items():
        keys.write_private(path / name, text.encode())
    return path


def _bound(order: Order, service: str) -> str:
    return order.address if "-" in service else order.bind or order.address


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except Invalid as error:
        problems.append(str(error))


def _address_problems(order: Order) -> Iterator[str]:
    try:
        address = socket.gethostbyname(order.address)
    except OSError as error:
        yield f"{order.address} has no address there: {error}"
        return
    if address.startswith("127.") and order.address != address:
        yield f"{order.address} is {address} there, where the others cannot reach it: give the IP"
    elif not ports.is_own(address):
        yield f"{order.address} is not an address of that machine"


@asynccontextmanager
async def _alone(lock: Path, takeover_s: float) -> AsyncIterator[None]:
    """Hold the service's lock, so that it runs once; ends an earlier process that holds it.

    Args:
        takeover_s: for that process, whose launcher is gone, to end.

    Raises:
        Refused: the earlier process does not end.
    """
    with lock.open("a+", encoding="utf-8") as file:
        since_s = time.monotonic()
        while not locked(file):
            if time.monotonic() - since_s > takeover_s:
                raise Refused(f"an earlier {lock.stem} does not end; see {lock}")
            file.seek(0)
            with suppress(ValueError, ProcessLookupError):
                os.kill(int(file.read()), signal.SIGTERM)
            await asyncio.sleep(0.2)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


async def _until_silent(heard: asyncio.StreamReader, stop: asyncio.Event) -> None:
    """Set `stop` when the launcher is gone. The time that this host sleeps does not count."""
    silent = 0
    while silent < SILENT_HEARTBEATS:
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                if not await heard.read(1024):
                    break
            silent = 0
        except TimeoutError:
            silent += 1
    else:
        silence_s = SILENT_HEARTBEATS * HEARTBEAT_S
        print(f"nothing heard of the launcher for {silence_s:.0f} s", file=sys.stderr)
    stop.set()


async def _main(checks: bool) -> int:
    heard = asyncio.StreamReader(MAX_ORDER_BYTES)
    protocol = asyncio.StreamReaderProtocol(heard)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    try:
        line = await heard.readline()
    except ValueError:  # over the limit
        raise Invalid(f"the launcher's order has more than {MAX_ORDER_BYTES >> 20} MiB") from None
    order = read(line)
    if checks:
        print(msgspec.json.encode(check(order)).decode())
        return 0
    return await run(order, heard)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sps2.cli.node", description=__doc__)
    parser.add_argument("--check", action="store_true", help="run nothing, say what would fail")
    arguments = parser.parse_args()
    try:
        status = asyncio.run(_main(arguments.check))
    except msgspec.MsgspecError as error:
        sys.exit(f"the launcher's order is not understood; is it of this version? {error}")
    except (ServiceError, OSError) as error:
        sys.exit(str(error))
    sys.exit(status)


if __name__ == "__main__":
    main()
