"""Lossless packing of a model's real KV: how small, how fast, and what it saves on slow links.

    python benchmarks/lossless.py [--rates 100 1000] [--tokens 2048] [--repeats 3]

A prompt is prefilled once, in this process, in bfloat16. Then its keys and values are packed and
unpacked on one thread, and checked to be the same; and sent over the data plane, layer by layer, to
a process on another host of this machine's making (as in links.py: Linux, root, iproute2), plain
and packed in turn. A transfer ends when all is unpacked there. Medians of the repeats; nothing else
is computed meanwhile, so a prefill gains less where its arithmetic hides transfers.
"""

import argparse
import asyncio
import doctest
import inspect
import subprocess
import sys
import time
from statistics import median

import msgspec
import torch
from links_network import Unavailable, inside, network
from torch import Tensor

from sps2.common.messages import Peer
from sps2.common.model.local import LocalAttention
from sps2.common.model.weights import load
from sps2.common.models import locate
from sps2.common.text.tokens import Tokenizer
from sps2.common.transport import lossless
from sps2.common.transport.expected import Like
from sps2.common.transport.frame import Frame, frame_for
from sps2.common.transport.plane import Plane

KV = list[tuple[Tensor, Tensor]]
WANTED = (Like(torch.bfloat16, (None, None, None)),) * 2


def computed(name: str, tokens: int) -> KV:
    """Keys and values of a text in each layer, [tokens, kv_heads, head_dim]."""
    folder = locate(name)
    model = load(folder, "bfloat16")
    ids = Tokenizer(folder).encode(inspect.getsource(doctest))[:tokens]
    positions = torch.arange(len(ids))
    local, found = LocalAttention(model.config, positions), list[tuple[Tensor, Tensor]]()

    async def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found.append((k.contiguous(), v.contiguous()))
        return await local(layer, q, k, v)

    asyncio.run(model.forward(torch.tensor(ids), positions, attend))
    return found


def rates(kv: KV, repeats: int) -> str:
    """What packing makes of the bytes, and how fast one thread is at it."""
    plain = sum(x.nbytes for pair in kv for x in pair)
    pack_s, unpack_s = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        packed = [lossless.pack(pair) for pair in kv]
        pack_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        back = [lossless.unpack(pair, WANTED) for pair in packed]
        unpack_s.append(time.perf_counter() - started)
        for pair, other in zip(kv, back, strict=True):
            assert all(
                torch.equal(x.view(torch.int16), y.view(torch.int16))
                for x, y in zip(pair, other, strict=True)
            )
    share = sum(x.nbytes for pair in packed for x in pair) / plain
    million = plain / 2e6
    return (
        f"{plain / 1e6:.1f} MB of keys and values, {share:.4f} of them packed; million numbers a "
        f"second: {million / min(pack_s):.0f} packed, {million / min(unpack_s):.0f} unpacked "
        f"(medians {million / median(pack_s):.0f}, {million / median(unpack_s):.0f})"
    )


async def receive(host: str) -> None:
    """The other process: takes transfers of `layers` frames, and says when it has each."""
    plane = Plane("there", "tcp")
    await plane.start(host)
    came: dict[int, int] = {}
    tasks: set[asyncio.Task[None]] = set()

    async def take(source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        if lossless.are_packed(tensors):
            tensors = await asyncio.to_thread(lossless.unpack, tensors, WANTED)
        run = frame.epochs[0]
        came[run] = came.get(run, 0) + 1
        if came[run] == frame.head:
            await plane.send(source, frame_for("answer", ("done",), (run,), 0, 0, ()), ())

    def deliver(source: str, frame: Frame, tensors: tuple[Tensor, ...]) -> None:
        tasks.add(asyncio.create_task(take(source, frame, tensors)))

    plane.serve("deposit", deliver)
    print(msgspec.json.encode(plane.peer).decode(), flush=True)
    plane.introduce(msgspec.json.decode(sys.stdin.readline(), type=Peer))
    await asyncio.to_thread(sys.stdin.read)
    await plane.close()


async def transfer(plane: Plane, run: int, kv: KV, packs: bool) -> float:
    """Seconds until all is there; the next layer is packed while one is sent."""
    with plane.open("done", run) as inbox:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as sends:
            for layer, pair in enumerate(kv):
                tensors = await asyncio.to_thread(lossless.pack, pair) if packs else pair
                frame = frame_for("deposit", ("r",), (run,), layer, 0, tensors, len(kv))
                sends.create_task(plane.send("there", frame, tensors))
        await inbox.recv("answer", 0, 0, "there")
        return time.perf_counter() - started


def started(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, stdin=-1, stdout=-1, encoding="utf-8")


async def over_links(kv: KV, options: argparse.Namespace) -> None:
    print(
        "| link | plain | packed | packed / plain, of each repeat |", "|---|---|---|---|", sep="\n"
    )
    with network(["here", "there"]) as built:
        command = [sys.executable, __file__, "--receive", built.hosts["there"].address]
        with inside(built.hosts["there"]):
            there = started(command)
        assert there.stdin
        assert there.stdout
        with inside(built.hosts["here"]):
            plane = Plane("here", "tcp")
            await plane.start(built.hosts["here"].address)
            try:
                plane.introduce(msgspec.json.decode(there.stdout.readline(), type=Peer))
                print(msgspec.json.encode(plane.peer).decode(), file=there.stdin, flush=True)
                for rate in options.rates:
                    built.shape(rate)
                    took: dict[bool, list[float]] = {False: [], True: []}
                    for repeat in range(2 * (options.repeats + 1)):
                        seconds = await transfer(plane, rate * 1000 + repeat, kv, repeat % 2 == 1)
                        if repeat > 1:  # the first of each warms up
                            took[repeat % 2 == 1].append(seconds)
                    ratios = [b / a for a, b in zip(took[False], took[True], strict=True)]
                    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                    plain, packed = median(took[False]), median(took[True])
                    print(
                        f"| {rate} Mbit/s | {plain:.2f} s | {packed:.2f} s | {each} |", flush=True
                    )
                await plane.close()
            finally:
                there.stdin.close()
                there.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", nargs="+", type=int, default=[100, 1000], help="Mbit/s")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--receive", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.receive:
        asyncio.run(receive(options.receive))
        return
    kv = computed(options.model, options.tokens)
    print(rates(kv, options.repeats), flush=True)
    try:
        asyncio.run(over_links(kv, options))
    except Unavailable as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
