import asyncio
import os
import random
import socket

import msgspec
import pytest
import torch

from sps2.common.errors import PeerLost
from sps2.common.transport import hello, listener
from sps2.common.transport.backends import BackendName
from sps2.common.transport.frame import frame_for
from sps2.common.transport.plane import Plane


@pytest.fixture(params=["tcp", "ucx"])
def backend(request: pytest.FixtureRequest) -> BackendName:
    return request.param  # type: ignore[no-any-return]


async def talk(a: Plane, b: Plane) -> None:
    """A frame from `a` to `b` arrives."""
    tensors = (torch.ones(3),)
    a.introduce(b.peer)
    with b.open("r", 0) as inbox:
        await a.send(b.name, frame_for("kv", ("r",), (0,), 0, 0, tensors), tensors)
        await inbox.recv("kv", 0, 0, a.name)


async def test_garbage_is_closed_and_counted(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_S", 0.2)
    monkeypatch.setattr(listener, "HALF_OPEN", 8)
    a, b = Plane("a/1", backend), Plane("b/1", backend)
    await a.start()
    await b.start()
    fds = len(os.listdir("/proc/self/fd"))
    rng = random.Random(1)
    host, port = hello.parse(b.address)
    strangers = []
    for kind in range(40):
        stranger = socket.create_connection((host, port))
        garbage = rng.randbytes(rng.choice([1, 8, 60, 5000]))
        stranger.sendall([garbage, b"SPS2" + garbage, b"", b"GET / HTTP/1.1\r\n\r\n"][kind % 4])
        if kind % 2:
            stranger.close()
        strangers.append(stranger)
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while b.counters["bad_hellos"] < len(strangers):
            await asyncio.sleep(0.01)
        await talk(a, b)
    for stranger in strangers:
        stranger.close()
    await a.close()
    await b.close()
    assert len(os.listdir("/proc/self/fd")) <= fds


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (hello.Hello("c/1", "tcp://127.0.0.1:1", "tcp", bytes(16)), "speaks"),
        (hello.Hello("a/1", "tcp://127.0.0.1:1", "ucx", bytes(16), b"x"), "already"),
    ],
)
async def test_refusals_say_why(greeting: hello.Hello, reason: str) -> None:
    backend: BackendName = "ucx" if greeting.backend == "tcp" else "tcp"
    if reason == "already":
        backend, greeting = "tcp", msgspec.structs.replace(greeting, backend="tcp")
    a, b = Plane("a/1", backend), Plane("b/1", backend)
    await a.start()
    await b.start()
    await talk(a, b)
    with pytest.raises(PeerLost, match=reason):
        await hello.dial(b.peer, greeting)
    await talk(a, b)
    await a.close()
    await b.close()
