"""What only UCX can do wrong: garbage after a good handshake."""

import asyncio
from collections import Counter

import msgspec
import pytest
import torch

from sps2.common.transport import frame as frames
from sps2.common.transport import hello, ucx_link
from sps2.common.transport.frame import Frame, Part, frame_for
from sps2.common.transport.plane import Plane
from sps2.common.transport.ucx_driver import Driver
from sps2.common.transport.ucx_link import CHUNKED, COMPLETE, INLINE, MESSAGE_BYTES, PREFIX

LARGE = frame_for("kv", ("r",), (0,), 0, 0, (torch.empty(MESSAGE_BYTES, dtype=torch.int8),))
HEADER = frames.encode(LARGE)
HUGE = msgspec.msgpack.encode(Frame("kv", ("r",), (0,), 0, 0, (Part("int8", (1 << 63, 0)),)))
WIDTHS = (1 << 32,) * 4 + (0,)
WIDE = msgspec.msgpack.encode(Frame("kv", ("r",), (0,), 0, 0, (Part("int8", WIDTHS),)))
"""Sizes that fit no integer of the library's, of tensors without a byte."""


@pytest.mark.parametrize(
    "messages",
    [
        [b"\xff" * 200],
        [PREFIX.pack(INLINE, 60_000) + bytes(100)],
        [PREFIX.pack(INLINE, 50) + bytes(50)],
        [PREFIX.pack(COMPLETE, 0)],
        [PREFIX.pack(INLINE, len(HEADER)) + HEADER],
        [PREFIX.pack(CHUNKED, len(HEADER)) + HEADER, bytes(MESSAGE_BYTES * 2)],
        [bytes(MESSAGE_BYTES + 1)],
        [PREFIX.pack(INLINE, len(HUGE)) + HUGE],
        [PREFIX.pack(INLINE, len(WIDE)) + WIDE],
    ],
)
async def test_garbage_ends_the_link_and_nothing_else(messages: list[bytes]) -> None:
    plane, friend = Plane("b/1", "ucx"), Plane("c/1", "ucx")
    await plane.start()
    await friend.start()
    plane.open("r", 0)
    driver = Driver("127.0.0.1", Counter())
    greeting = hello.Hello("a/1", "ucx://127.0.0.1:1", "ucx", bytes(16), driver.address)
    connection, welcome = await hello.dial(plane.peer, greeting)
    endpoint = driver.connect(welcome.worker, lambda: None)
    tags = [ucx_link.message_tag(welcome.slot), ucx_link.chunk_tag(welcome.slot, 1)]
    for message, tag in zip(messages, tags, strict=False):
        endpoint.send(message, tag, lambda error: None)
    async with asyncio.timeout(60):
        while plane.counters["peers_lost"] == 0:
            await asyncio.sleep(0.001)
        assert plane.counters["bad_frames"] == 1

        friend.introduce(plane.peer)
        tensors = (torch.ones(3),)
        with plane.open("s", 0) as inbox:
            frame = frame_for("kv", ("s",), (0,), 0, 0, tensors)
            await friend.send("b/1", frame, tensors)
            await inbox.recv("kv", 0, 0, "c/1")
    connection.close()
    endpoint.close()
    await driver.close()
    await friend.close()
    await plane.close()
