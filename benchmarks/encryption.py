"""What encryption of the data plane costs: two processes over loopback, plain and TLS interleaved.

`python benchmarks/encryption.py` prints a table, in half a minute; nothing is written. A round is
64 frames in a row, of which the last is answered, and then round trips of frames of some sizes.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory

import msgspec
import psutil
import torch
import uvloop
from machine import machine
from torch import Tensor

from sps2.common.keys import Key
from sps2.common.keys.keyring import Keyring
from sps2.common.messages import Peer
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane

ECHOED = (1 << 10, 16 << 10, 256 << 10)
STREAMED = 4 << 20
FRAMES = 64
"""Of a round of `STREAMED`: 256 MiB."""
CALLS = 200
"""Of a round of each of `ECHOED`."""
FORMS = ("plain", "encrypted")


def keyed(form: str, folder: Path) -> Key | None:
    return None if form == "plain" else Keyring(folder).make("bench", force=True)


async def serve(keys: list[Key | None], above: list[Peer]) -> None:
    """The other process: echoes questions, and answers the last frame of a round."""
    async with AsyncExitStack() as stack:
        planes = []
        for form, key, peer in zip(FORMS, keys, above, strict=True):
            plane = Plane(f"there/{form}", "tcp", key=key)
            await plane.start()
            stack.push_async_callback(plane.close)
            plane.introduce(peer)
            _answer(plane, peer.name)
            planes.append(plane.peer)
        print(msgspec.json.encode(planes).decode(), flush=True)
        await asyncio.to_thread(sys.stdin.read)


def _answer(plane: Plane, to: str) -> None:
    answering: set[asyncio.Task[None]] = set()

    def say(frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        answer = frame_for("answer", ("round",), (0,), 0, frame.at, tensors)
        task = asyncio.create_task(plane.send(to, answer, tensors))
        answering.add(task)
        task.add_done_callback(answering.discard)

    def streamed(source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        if frame.layer == FRAMES - 1:
            say(frame, (torch.zeros(1),))

    plane.serve("question", lambda source, frame, tensors: say(frame, tensors))
    plane.serve("deposit", streamed)


async def stream(plane: Plane, to: str, at: int) -> float:
    """Seconds of a round of frames, until the last was read."""
    tensors = (torch.empty(STREAMED, dtype=torch.uint8).fill_(at % 100),)
    with plane.open("round", 0) as inbox:
        since_s = time.perf_counter()
        async with asyncio.TaskGroup() as sends:
            for layer in range(FRAMES):
                frame = frame_for("deposit", ("round",), (0,), layer, at, tensors)
                sends.create_task(plane.send(to, frame, tensors))
        await inbox.recv("answer", 0, at, to)
        return time.perf_counter() - since_s


async def echo(plane: Plane, to: str, nbytes: int) -> list[float]:
    """Seconds of each round trip."""
    tensors = (torch.empty(nbytes, dtype=torch.uint8).fill_(1),)
    times = []
    with plane.open("round", 0) as inbox:
        for at in range(CALLS):
            since_s = time.perf_counter()
            await plane.send(to, frame_for("question", ("round",), (0,), 0, at, tensors), tensors)
            await inbox.recv("answer", 0, at, to)
            times.append(time.perf_counter() - since_s)
    return times


async def measure(rounds: int, there: "Popen[str]") -> None:
    with TemporaryDirectory() as home:
        keys = [keyed(form, Path(home) / "keys") for form in FORMS]
    async with AsyncExitStack() as stack:
        planes = []
        for form, key in zip(FORMS, keys, strict=True):
            plane = Plane(f"here/{form}", "tcp", key=key)
            await plane.start()
            stack.push_async_callback(plane.close)
            planes.append(plane)
        assert there.stdin
        assert there.stdout
        told = keys, [plane.peer for plane in planes]
        print(msgspec.json.encode(told).decode(), file=there.stdin, flush=True)
        peers = msgspec.json.decode(there.stdout.readline(), type=list[Peer])
        for plane, peer in zip(planes, peers, strict=True):
            plane.introduce(peer)
        processes = [psutil.Process(), psutil.Process(there.pid)]
        await _rounds(rounds, planes, [peer.name for peer in peers], processes)
        there.stdin.close()


async def _rounds(
    rounds: int, planes: list[Plane], names: list[str], processes: list[psutil.Process]
) -> None:
    streams: dict[str, list[float]] = {form: [] for form in FORMS}
    cpu: dict[str, list[float]] = {form: [] for form in FORMS}
    echoes: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds + 1):
        for form, plane, name in zip(FORMS, planes, names, strict=True):
            before = sum(sum(process.cpu_times()[:2]) for process in processes)
            took_s = await stream(plane, name, number)
            spent_s = sum(sum(process.cpu_times()[:2]) for process in processes) - before
            times = {nbytes: await echo(plane, name, nbytes) for nbytes in ECHOED}
            if not number:  # the first warms up
                continue
            streams[form].append(took_s)
            cpu[form].append(spent_s)
            for nbytes, found in times.items():
                echoes.setdefault((form, nbytes), []).extend(found)
    rates = [1e-9 * STREAMED * FRAMES / median(streams[form]) for form in FORMS]
    costs = [1e9 * median(cpu[form]) / (STREAMED * FRAMES) for form in FORMS]
    print("| | plain | encrypted | ratio |", "|---|---|---|---|", sep="\n")
    _row("GB/s, frames of 4 MiB", rates, 2)
    _row("CPU seconds a GB, both sides together", costs, 2)
    for nbytes in ECHOED:
        _row(
            f"us, round trip of {nbytes >> 10} KiB",
            [1e6 * median(echoes[form, nbytes]) for form in FORMS],
            0,
        )


def _row(what: str, values: Sequence[float], digits: int) -> None:
    plain, encrypted = values
    ratio = encrypted / plain
    print(f"| {what} | {plain:.{digits}f} | {encrypted:.{digits}f} | {ratio:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--there", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.there:
        keys, above = msgspec.json.decode(
            sys.stdin.readline(), type=tuple[list[Key | None], list[Peer]]
        )
        uvloop.run(serve(keys, above))
        return
    flags = Path("/proc/cpuinfo")
    aes = "aes" in flags.read_text(encoding="utf-8").split() if flags.exists() else "unknown"
    print(machine(), f"AES in hardware: {aes}")
    there = Popen([sys.executable, __file__, "--there"], stdin=PIPE, stdout=PIPE, encoding="utf-8")
    uvloop.run(measure(options.rounds, there))
    there.wait()


if __name__ == "__main__":
    main()
