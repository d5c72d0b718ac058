"""What only TCP can do wrong: garbage after a good handshake."""

import asyncio
import random

import msgspec
import pytest
import torch
from torch import Tensor

from sps2.common.transport import frame as frames
from sps2.common.transport import hello
from sps2.common.transport.frame import Frame, Part, frame_for
from sps2.common.transport.plane import Plane
from sps2.common.transport.tcp_link import FRAME, PREFIX


async def stranger_sends(data: bytes, piece: int, taken: list[tuple[Tensor, ...]]) -> Plane:
    """A plane that accepted a link on which `data` came, in pieces, before it closed."""
    plane = Plane("b/1", "tcp")
    plane.serve("kv", lambda source, frame, tensors: taken.append(tensors))
    await plane.start()
    greeting = hello.Hello("a/1", "tcp://x:1", "tcp", bytes(16))
    connection, _ = await hello.dial(plane.peer, greeting)
    for start in range(0, len(data), piece):
        try:
            await connection.write(data[start : start + piece])
        except OSError:
            break
        await asyncio.sleep(0)
    connection.close()
    async with asyncio.timeout(60):
        while plane.counters["peers_lost"] == 0:
            await asyncio.sleep(0.001)
    return plane


@pytest.mark.parametrize(
    "data",
    [
        random.Random(1).randbytes(5000),
        PREFIX.pack(FRAME, frames.MAX_HEADER_BYTES + 1) + bytes(10_000),
        PREFIX.pack(FRAME, 100) + bytes(100),
        PREFIX.pack(FRAME, 10) + bytes(3),
        PREFIX.pack(FRAME, 60)
        + msgspec.msgpack.encode(
            Frame("kv", ("r",), (0,), 0, 0, (Part("int8", (1 << 40,)),))
        ).ljust(60, b"\0"),
    ],
)
async def test_garbage_ends_the_link_and_nothing_else(data: bytes) -> None:
    plane = await stranger_sends(data, 1 << 20, [])
    assert plane.counters["peers_lost"] == 1
    await plane.close()


@pytest.mark.parametrize("piece", [1, 7, 100_000])
async def test_frames_survive_any_cut(piece: int) -> None:
    tensors = (torch.arange(700), torch.ones(0), torch.arange(3, dtype=torch.int8))
    frame = frame_for("kv", ("r",), (0,), 0, 0, tensors)
    header = frames.encode(frame)
    data = b"".join(
        (PREFIX.pack(FRAME, len(header)), header, *map(frames.as_bytes, tensors), b"\0")
    )
    cancelled = data[:-1] + b"\1"
    taken: list[tuple[Tensor, ...]] = []
    plane = await stranger_sends((data + cancelled) * 2, piece, taken)
    assert plane.counters["frames_dropped"] == 2
    assert len(taken) == 2
    for got in taken:
        assert all(torch.equal(x, y) for x, y in zip(got, tensors, strict=True))
    await plane.close()
