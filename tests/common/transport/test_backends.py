import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import uvloop

from sps2.common.errors import Invalid
from sps2.common.keys import Key
from sps2.common.messages import Peer
from sps2.common.transport import backends, choose, ucx
from sps2.common.transport.backends import BackendName
from sps2.common.transport.frame import frame_for
from sps2.common.transport.plane import Plane


@pytest.fixture
def with_rdma(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host with one RDMA device, as far as the choice looks."""
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(backends, "RDMA", tmp_path)


@pytest.mark.usefixtures("with_rdma")
def test_auto_takes_ucx_where_it_has_something_to_drive() -> None:
    assert choose("auto").backend == "ucx"


def test_auto_takes_tcp_where_ucx_would_use_tcp(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backends, "RDMA", tmp_path)
    assert choose("auto").backend == "tcp"
    assert "RDMA" in choose("auto").reason
    assert choose("tcp") == ("tcp", "tcp, as configured")


@pytest.mark.usefixtures("with_rdma")
def test_auto_takes_tcp_where_links_must_be_encrypted() -> None:
    assert choose("auto", "on") == ("tcp", "tcp, since ucx cannot encrypt")


async def test_the_check_works_beside_a_running_loop() -> None:
    assert choose("ucx").backend == "ucx"


@pytest.mark.usefixtures("with_rdma")
def test_auto_falls_back_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ucxx._lib.libucxx", None)
    assert "libucxx" in ucx.find_fault()
    choice = choose("auto")
    assert choice.backend == "tcp"
    assert "libucxx" in choice.reason
    with pytest.raises(Invalid, match="transport tcp"):
        choose("ucx")


def test_choosing_needs_neither_torch_nor_ucx_before_it_is_asked() -> None:
    script = (
        "import sys; from sps2.common.transport import choose; choose('tcp');"
        "assert not {'torch', 'ucxx'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_planes_on_the_loops_of_two_threads(backend: BackendName, key: Key | None) -> None:
    """Each thread's plane sends 200 frames to the other, on different kinds of loop."""
    peers: dict[str, Peer] = {}
    meeting = threading.Barrier(2, timeout=60)
    failures: list[BaseException] = []

    async def life(name: str, other: str) -> None:
        plane = Plane(name, backend, key=key)
        await plane.start()
        peers[name] = plane.peer
        inbox = plane.open("r", 0)
        await asyncio.to_thread(meeting.wait)
        plane.introduce(peers[other])
        for at in range(200):
            tensors = (torch.full((at * 100,), at),)
            frame = frame_for("kv", ("r",), (0,), 0, at, tensors)
            async with asyncio.timeout(60):
                await plane.send(other, frame, tensors)
                (got,) = await inbox.recv("kv", 0, at, other)
            assert torch.equal(got, tensors[0])
        await asyncio.to_thread(meeting.wait)
        await plane.close()

    def run(name: str, other: str, loop: object) -> None:
        try:
            with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type]
                runner.run(life(name, other))
        except BaseException as error:
            failures.append(error)
            meeting.abort()

    threads = [
        threading.Thread(target=run, args=("a/1", "b/1", None)),
        threading.Thread(target=run, args=("b/1", "a/1", uvloop.new_event_loop)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
