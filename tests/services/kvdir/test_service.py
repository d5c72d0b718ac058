"""The directory's streams, when a holder is back before its loss is noticed."""

from collections.abc import AsyncGenerator

from sps2.common.messages import Reserve, Room
from sps2.services.kvdir.directory import Directory
from sps2.services.kvdir.service import DirectoryService

from .test_directory import place


async def begun(service: DirectoryService, reserve: Reserve) -> AsyncGenerator[Room, None]:
    stream = service.reserve(reserve)
    assert isinstance(stream, AsyncGenerator)
    await anext(stream)
    return stream


async def test_the_end_of_a_lost_stream_does_not_end_the_restored_lease() -> None:
    directory = Directory()
    directory.announce("a", "a/1", 10, 16, ())
    service = DirectoryService(directory)
    places = (place("a", 4),)
    lost = await begun(service, Reserve("r", 0, places))
    restored = await begun(service, Reserve("r", 0, places, restore=True))
    await lost.aclose()
    assert directory.room().free == {"a": 6}
    await restored.aclose()
    assert directory.room().free == {"a": 10}
