"""A gateway that is to end finishes its answers, and takes no more requests."""

import asyncio
import json

import httpx
import pytest

from sps2.common.errors import Cancelled, PeerLost
from sps2.services.gateway.draining import drained
from sps2.services.gateway.http.server import bind

from ...waiting import until

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}


def drain(door, within_s=60.0):
    return asyncio.create_task(door.parts.drained(door.front, within_s))


async def test_streams_go_on_and_connections_end(door):
    play = door.play
    play.gates["token 3"] = asyncio.Event()
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as client:
        async with client.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
            lines = answer.aiter_lines()
            first = await anext(lines)
            idle = httpx.AsyncClient(base_url=door.url, timeout=60)
            await idle.get("/health")
            draining = drain(door)
            await until(lambda: door.front._asked_by_s)
            with pytest.raises(httpx.ConnectError):
                await idle.get("/health")
            await idle.aclose()
            assert not draining.done()
            assert door.parts._about.state == "waiting"
            play.gates["token 3"].set()
            rest = [line async for line in lines if line]
        said = [json.loads(line[6:]) for line in [first, *rest] if line != "data: [DONE]"]
        text = "".join(each["choices"][0]["delta"].get("content", "") for each in said)
        assert text == "Hello, world."
        assert rest[-1] == "data: [DONE]"
        await draining


async def test_a_connection_without_a_request_gets_its_answer(door):
    host, _, port = door.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    draining = drain(door)
    await until(lambda: door.front._asked_by_s)
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = await reader.read()  # to the end of the connection
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer
    writer.close()
    await draining


async def test_answers_on_the_bus_go_on(door):
    play = door.play
    play.gates["token 3"] = asyncio.Event()
    async with door.client() as client:
        stream = client.complete_stream("abc")
        text = (await anext(stream)).choices[0].text
        draining = drain(door)
        await until(lambda: door.front._asked_by_s)
        with pytest.raises(PeerLost, match="shutting down"):
            await client.complete("abc")
        play.gates["token 3"].set()
        async for chunk in stream:
            text += "".join(choice.text for choice in chunk.choices)
        assert text == "Hello, world."
        await draining


async def test_the_status_is_shown_to_the_end(door):
    """The only gateway refused it, so that all services seemed to start."""
    play = door.play
    play.gates["token 3"] = asyncio.Event()
    async with door.client() as client:
        stream = client.complete_stream("abc")
        chunk = await anext(stream)
        assert (await client.status()).ready
        draining = drain(door)
        await until(lambda: door.front._asked_by_s)
        status = await client.status()
        states = {each.service: (each.state, each.waiting_for) for each in status.services}
        assert states["gateway"] == ("waiting", "the end of its last answers")
        assert states["kvdir"][0] == "ready"
        assert not status.ready
        assert status.waiting_for == "the gateway, which waits for the end of its last answers"
        await client.cancel(chunk.id)
        with pytest.raises(Cancelled):
            async for _ in stream:
                pass
        await draining


async def test_it_waits_only_so_long(door):
    door.play.gates["token 3"] = asyncio.Event()
    async with (
        httpx.AsyncClient(base_url=door.url, timeout=60) as client,
        client.stream("POST", "/v1/chat/completions", json=CHAT) as answer,
    ):
        await drain(door, within_s=0.01)
        door.parts.end(PeerLost("gateway", "the gateway is shutting down"))
        lines = [line async for line in answer.aiter_lines() if line]
        assert "the gateway is shutting down" in lines[-2]


async def test_it_does_not_wait_where_nothing_is_served():
    await drained(lambda: False, lambda: False, 1e9)


def test_several_gateways_listen_on_one_port():
    with bind("127.0.0.1", 0, shared=True) as one:
        port = one.getsockname()[1]
        with bind("127.0.0.1", port, shared=True) as two:
            assert two.getsockname() == one.getsockname()
