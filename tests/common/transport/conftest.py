"""Planes of every backend for the tests."""

from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count

import pytest

from sps2.common.device import HOST, Device
from sps2.common.transport.backends import BackendName
from sps2.common.transport.plane import Plane

MakePlanes = Callable[..., Awaitable[list[Plane]]]


@pytest.fixture(params=["inproc", "tcp", "ucx"])
def backend(request: pytest.FixtureRequest) -> BackendName:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def make_planes(backend: BackendName) -> AsyncIterator[MakePlanes]:
    """Starts planes that know each other, and closes them in the end."""
    made: list[Plane] = []
    numbers = count()

    async def make(how_many: int = 2, device: Device = HOST) -> list[Plane]:
        planes = [Plane(f"shard-{next(numbers)}/1", backend, device) for _ in range(how_many)]
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
