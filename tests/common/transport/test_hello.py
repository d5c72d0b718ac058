import asyncio

import pytest

from sps2.common.errors import Invalid, PeerLost
from sps2.common.transport import hello


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400\r\n\r\n", b"SPS2\x09\x00\x00\x00"])
async def test_dialling_something_else(answer: bytes) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(PeerLost, match="cannot reach"):
            await hello.dial(
                "b/1", f"tcp://127.0.0.1:{port}", hello.Hello("a/1", "tcp://127.0.0.1:1", "tcp")
            )


async def test_nobody_listens() -> None:
    greeting = hello.Hello("a/1", "tcp://127.0.0.1:1", "tcp")
    with pytest.raises(PeerLost, match="cannot reach"):
        await hello.dial("b/1", "tcp://127.0.0.1:1", greeting)


@pytest.mark.parametrize("address", ["", "tcp://", "127.0.0.1:80", "tcp://host", "tcp://h:x"])
def test_malformed_addresses(address: str) -> None:
    with pytest.raises(Invalid, match="is not an address"):
        hello.parse(address)
