"""Planes of every backend for the tests."""

from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count

import pytest

from sps2.common.device import HOST, Device
from sps2.common.keys import Key
from sps2.common.keys.keyring import Keyring
from sps2.common.transport.backends import BackendName
from sps2.common.transport.plane import Plane

MakePlanes = Callable[..., Awaitable[list[Plane]]]


@pytest.fixture(scope="session")
def cluster_key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """The key of a cluster whose links are encrypted."""
    return Keyring(tmp_path_factory.mktemp("cluster") / "keys").make("test")


@pytest.fixture(params=["inproc", "tcp", "tcp+tls", "ucx"])
def scheme(request: pytest.FixtureRequest) -> str:
    """Of the planes' addresses."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def backend(scheme: str) -> BackendName:
    return scheme.partition("+")[0]  # type: ignore[return-value]


@pytest.fixture
def key(scheme: str, cluster_key: Key) -> Key | None:
    """What the planes encrypt links by."""
    return cluster_key if scheme.endswith("tls") else None


@pytest.fixture
async def make_planes(backend: BackendName, key: Key | None) -> AsyncIterator[MakePlanes]:
    """Starts planes that know each other, and closes them in the end."""
    made: list[Plane] = []
    numbers = count()

    async def make(how_many: int = 2, device: Device = HOST) -> list[Plane]:
        planes = [Plane(f"shard-{next(numbers)}/1", backend, device, key) for _ in range(how_many)]
        for plane in planes:
            await plane.start()
            made.append(plane)
        for plane in planes:
            for other in planes:
                plane.introduce(other.peer)
        return planes

    yield make
    for plane in made:
        await plane.close()
