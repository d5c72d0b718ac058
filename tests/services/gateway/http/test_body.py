"""Bodies are bounded before they cost anything: in size, in memory, in values, in tokens."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from ..conftest import Door

OpenDoor = Callable[..., Any]
COMPLETIONS = "/v1/completions"
PATIENCE_S = 60.0


def head(length: int, *lines: str) -> bytes:
    more = "".join(f"{line}\r\n" for line in lines)
    return (
        f"POST {COMPLETIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n{more}\r\n"
    ).encode()


@asynccontextmanager
async def connected(door: Door) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = door.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield reader, writer
    finally:
        writer.close()


async def post(door: Door, body: object) -> httpx.Response:
    async with httpx.AsyncClient(base_url=door.url, timeout=PATIENCE_S) as http:
        return await http.post(COMPLETIONS, content=json.dumps(body))


async def test_a_busy_gateway_refuses_before_the_body_comes(open_door: OpenDoor) -> None:
    async with open_door(max_requests=1) as door:
        door.play.gates["decode"] = asyncio.Event()
        first = asyncio.create_task(post(door, {"prompt": "x"}))
        while not door.play.submitted:
            await asyncio.sleep(0.005)
        async with connected(door) as (reader, writer):
            writer.write(head(1000))
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 429")
            assert b"retry-after" in answer
        door.play.gates["decode"].set()
        assert (await first).status_code == 200


async def test_bodies_in_memory_are_bounded_together(open_door: OpenDoor) -> None:
    async with open_door(max_bodies_bytes=200_000) as door:
        async with connected(door) as (reader, writer):
            large = {"prompt": "x", "user": "y" * 150_000}
            raw = json.dumps(large).encode()
            writer.write(head(len(raw)) + raw[:-1])
            while (other := await post(door, large)).status_code != 429:
                await asyncio.sleep(0.01)  # the first has not been read yet
            assert other.headers["retry-after"]
            assert "200000 bytes" in other.json()["error"]["message"]
            assert (await post(door, {"prompt": "x"})).status_code == 200, "small ones are"
            writer.write(raw[-1:])
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert (await post(door, large)).status_code == 200


async def test_one_body_may_be_larger_than_all_together_may_be(open_door: OpenDoor) -> None:
    async with open_door(max_bodies_bytes=1) as door:
        assert (await post(door, {"prompt": "x", "user": "y" * 300_000})).status_code == 200


async def test_many_values_are_refused_before_they_are_decoded(door: Door) -> None:
    for prompt in ([1] * 300_000, [[1]] * 300_000, ["a"] * 300_000):
        refused = await post(door, {"prompt": prompt})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert "commas" in refused.json()["error"]["message"]


async def test_prompts_are_counted_before_they_are_tokenised(door: Door) -> None:
    refused = await post(door, {"prompt": ["x" * 300, *["a"] * 600]})
    assert refused.status_code == 400
    assert "601 prompts" in refused.json()["error"]["message"]


@pytest.mark.parametrize("chat", [False, True])
async def test_a_text_that_is_far_too_long_is_not_tokenised_as_a_whole(
    door: Door, chat: bool
) -> None:
    text = "ab " * 300_000
    body = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    path = "/v1/chat/completions" if chat else COMPLETIONS
    async with httpx.AsyncClient(base_url=door.url, timeout=PATIENCE_S) as http:
        for url, most in ((path, 200), ("/tokenize", 16 * 200)):
            refused = (await http.post(url, json=body)).json()["error"]
            assert refused["code"] == "context_length_exceeded"
            assert "its first 65536 of 9000" in refused["message"]
            assert f"the most is {most}" in refused["message"]


async def test_a_compressed_body_is_415(door: Door) -> None:
    async with httpx.AsyncClient(base_url=door.url, timeout=PATIENCE_S) as http:
        for path in (COMPLETIONS, "/tokenize"):
            answer = await http.post(
                path, content=b"\x1f\x8b", headers={"content-encoding": "gzip"}
            )
            assert answer.status_code == 415
            assert answer.headers["accept-encoding"] == "identity"
            assert "plain JSON" in answer.json()["error"]["message"]
        same = {"content-encoding": "identity"}
        plain = await http.post(COMPLETIONS, json={"prompt": "x"}, headers=same)
        assert plain.status_code == 200


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
async def test_who_sends_first_and_reads_then_sees_why_it_is_too_large(
    open_door: OpenDoor, version: str
) -> None:
    async with open_door(max_body_bytes=1000) as door, connected(door) as (reader, writer):
        length = 8 << 20
        writer.write(head(length, "connection: close").replace(b"HTTP/1.1", version.encode()))
        for _ in range(length >> 16):
            writer.write(b" " * (1 << 16))
            await writer.drain()
        answer = await reader.read()  # to its end: the connection is closed as was asked
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"over the limit of 1000 bytes" in answer


async def test_a_body_that_is_announced_is_asked_for_or_refused(open_door: OpenDoor) -> None:
    body = b'{"prompt": "x"}'
    expect = "expect: 100-continue"
    async with open_door(max_body_bytes=1000) as door:
        async with connected(door) as (reader, writer):
            writer.write(head(len(body), expect))
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        async with connected(door) as (reader, writer):
            writer.write(head(1 << 40, expect))
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 413")
            assert b"connection: close" in answer, "whether the body comes cannot be known"
