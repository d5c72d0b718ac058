import asyncio
import os
import random
import socket

import msgspec
import pytest
import torch

from sps2.common.errors import PeerLost
from sps2.common.keys import Key
from sps2.common.transport import hello, listener
from sps2.common.transport.backends import BackendName
from sps2.common.transport.frame import frame_for
from sps2.common.transport.interfaces import Behind
from sps2.common.transport.plane import Plane


@pytest.fixture(params=["tcp", "tcp+tls", "ucx", "ucx+tls"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


async def talk(a: Plane, b: Plane) -> None:
    """A frame from `a` to `b` arrives."""
    tensors = (torch.ones(3),)
    a.introduce(b.peer)
    with b.open("r", 0) as inbox:
        await a.send(b.name, frame_for("kv", ("r",), (0,), 0, 0, tensors), tensors)
        await inbox.recv("kv", 0, 0, a.name)


async def test_garbage_is_closed_and_counted(
    backend: BackendName, key: Key | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_S", 0.2)
    monkeypatch.setattr(listener, "HALF_OPEN", 8)
    a, b = (Plane(name, backend, key=key) for name in ("a/1", "b/1"))
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
    async with asyncio.timeout(60):
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


async def test_a_loss_that_this_side_has_not_noticed() -> None:
    """Whoever opens a link of a new generation has lost all that there was before."""
    a, b = Plane("a/1", "tcp"), Plane("b/1", "tcp")
    await a.start()
    await b.start()
    await talk(a, b)
    gone: list[str] = []
    b.on_gone(gone.append)
    inbox = b.open("r", 0)
    waiting = asyncio.create_task(inbox.recv("kv", 0, 1, "a/1"))
    await asyncio.sleep(0)
    anew = hello.Hello("a/1", a.address, "tcp", a.token, generation=2)
    connection, _ = await hello.dial(b.peer, anew)
    with pytest.raises(PeerLost, match="lost its links with this side"):
        await waiting
    assert gone == ["a/1"]
    with pytest.raises(Behind, match="has lost its links with a/1") as behind:
        await hello.dial(b.peer, msgspec.structs.replace(anew, generation=1))
    assert behind.value.generation == 2
    with pytest.raises(PeerLost, match="already"):
        await hello.dial(b.peer, anew)
    connection.close()
    await a.close()
    await b.close()


async def test_the_side_that_has_not_noticed_dials(backend: BackendName, key: Key | None) -> None:
    a, b = (Plane(name, backend, key=key) for name in ("a/1", "b/1"))
    await a.start()
    await b.start()
    await talk(a, b)
    a.forget("b/1")
    async with asyncio.timeout(60):
        while not b.counters["peers_lost"]:
            await asyncio.sleep(0.001)
    a.introduce(msgspec.structs.replace(b.peer, address="tcp://127.0.0.1:1"))
    with pytest.raises(PeerLost):  # a dial that fails is a loss that b does not hear of
        await a.send("b/1", frame_for("kv", ("r",), (0,), 0, 0, ()), ())
    b.introduce(a.peer)
    await b.send("a/1", frame_for("kv", ("r",), (0,), 0, 0, ()), ())
    await talk(b, a)
    await talk(a, b)
    await a.close()
    await b.close()
