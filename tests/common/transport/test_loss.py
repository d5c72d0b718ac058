"""What is seen of a peer process that is killed."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import torch
import uvloop

from sps2.common.errors import PeerLost
from sps2.common.messages import Peer
from sps2.common.transport.backends import BackendName
from sps2.common.transport.frame import frame_for
from sps2.common.transport.plane import Plane

SCRIPT = Path(__file__).with_name("other_process.py")

Loop = Callable[[], asyncio.AbstractEventLoop] | None


@asynccontextmanager
async def child_of(plane: Plane) -> AsyncIterator[Process]:
    """A child process whose first frame has arrived, and which can be reached."""
    above = msgspec.json.encode(plane.peer).decode()
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), plane.backend, above, stdout=PIPE
    )
    try:
        assert child.stdout is not None
        plane.introduce(msgspec.json.decode(await child.stdout.readline(), type=Peer))
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


@pytest.mark.parametrize(("backend", "loop"), [("tcp", None), ("ucx", uvloop.new_event_loop)])
def test_killed_while_a_receive_waits(backend: BackendName, loop: Loop) -> None:
    async def test() -> None:
        plane = Plane("parent/1", backend)
        await plane.start()
        lost: list[str] = []
        plane.on_lost(lost.append)
        async with asyncio.timeout(60), child_of(plane) as child:
            with plane.open("r", 0) as inbox:
                await inbox.recv("kv", 0, 0, "child/1")
                waiting = asyncio.create_task(inbox.recv("kv", 0, 1, "child/1"))
                await asyncio.sleep(0.01)
                child.kill()
                with pytest.raises(PeerLost):
                    await waiting
            assert lost == ["child/1"]
        await plane.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(test())


@pytest.mark.parametrize(("backend", "loop"), [("ucx", None), ("tcp", uvloop.new_event_loop)])
def test_killed_while_a_large_send_is_under_way(backend: BackendName, loop: Loop) -> None:
    async def test() -> None:
        plane = Plane("parent/1", backend)
        await plane.start()
        lost: list[str] = []
        plane.on_lost(lost.append)
        tensors = (torch.ones(64 << 20, dtype=torch.uint8),)
        async with asyncio.timeout(60), child_of(plane) as child:
            for at in range(2):  # the link is up
                await plane.send(
                    "child/1", frame_for("kv", ("r",), (0,), 0, at, tensors[:0]), tensors[:0]
                )
            os.kill(child.pid, signal.SIGSTOP)
            frame = frame_for("kv", ("r",), (0,), 0, 2, tensors)
            sending = asyncio.create_task(plane.send("child/1", frame, tensors))
            queued = asyncio.create_task(plane.send("child/1", frame, tensors))
            await asyncio.sleep(0.1)
            assert not sending.done()
            child.kill()
            for task in (sending, queued):
                with pytest.raises(PeerLost):
                    await task
            assert lost == ["child/1"]
        await plane.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(test())
