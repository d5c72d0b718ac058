"""The first word to whoever wants to join."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest

from sps2.common.errors import Invalid
from sps2.services.joining import hello
from sps2.services.joining.hello import Hello, listen

WORD = Hello("home", "1.0", "0123", "x" * 40)


@asynccontextmanager
async def listening() -> AsyncIterator[int]:
    """Listen within the block, at the port that is returned; all connections end with it."""
    async with await listen("127.0.0.1", 0, WORD) as server:
        yield server.sockets[0].getsockname()[1]
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0.002)


async def heard(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.readline()
    finally:
        writer.close()


async def test_everybody_hears_it_and_later_versions_may_say_more() -> None:
    async with listening() as port:
        line = await heard(port)
    assert msgspec.json.decode(line, type=Hello) == WORD
    assert msgspec.json.decode(line.replace(b"{", b'{"more": 1, '), type=Hello) == WORD


async def test_who_stays_keeps_out_only_so_many_and_only_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hello, "CONNECTIONS", 3)
    async with listening() as port, AsyncExitStack() as staying:
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            staying.callback(writer.close)
            assert await reader.readline()
        assert await heard(port) == b"", "one too many"
        writer.close()
        while not await heard(port):
            pass


async def test_a_port_in_use_is_named() -> None:
    async with listening() as port:
        with pytest.raises(Invalid, match=f"cannot listen on 127.0.0.1:{port}"):
            await listen("127.0.0.1", port, WORD)
