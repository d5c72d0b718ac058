"""A peer in a process of its own: says where it listens, sends one frame, takes all that comes."""

import asyncio
import sys

import msgspec
import torch

from sps2.common.messages import Peer
from sps2.common.transport.frame import frame_for
from sps2.common.transport.plane import Plane


async def main(backend: str, parent: str) -> None:
    plane = Plane("child/1", backend)  # type: ignore[arg-type]
    await plane.start()
    above = msgspec.json.decode(parent, type=Peer)
    plane.introduce(above)
    plane.serve("kv", lambda source, frame, tensors: None)
    print(msgspec.json.encode(plane.peer).decode(), flush=True)
    tensors = (torch.ones(3),)
    await plane.send(above.name, frame_for("kv", ("r",), (0,), 0, 0, tensors), tensors)
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
