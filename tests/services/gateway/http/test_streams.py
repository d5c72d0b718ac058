"""Streams: events, errors in them, clients that leave."""

import asyncio
import json

import pytest

from sps2.common.errors import PeerLost

from ....waiting import until
from .asked import COMPLETIONS


async def test_streams_events(http):
    body = {"prompt": "x", "stream": True, "max_tokens": 2}
    async with http.stream("POST", COMPLETIONS, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "content-length" not in answer.headers
        lines = [line async for line in answer.aiter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert [event["choices"][0]["text"] for event in events] == ["H", "e"]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, "length"]
    assert "usage" not in events[0]


async def test_a_silent_stream_is_kept_alive(http, door):
    door.play.gates["prefill"] = asyncio.Event()
    async with http.stream("POST", COMPLETIONS, json={"prompt": "x", "stream": True}) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        assert await anext(lines) == ""
        door.play.gates["prefill"].set()
        rest = [line async for line in lines]
    assert "data: [DONE]" in rest


async def test_an_error_in_a_stream_is_an_event(http, door):
    door.play.gates["prefill"] = asyncio.Event()
    door.play.fail["prefill"] = PeerLost("prefill-1")
    async with http.stream("POST", COMPLETIONS, json={"prompt": "x", "stream": True}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        door.play.gates["prefill"].set()
        rest = [line async for line in lines if line.startswith("data")]
    assert json.loads(rest[0].removeprefix("data: "))["error"]["code"] == "peer_lost"
    assert rest[1:] == ["data: [DONE]"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["queue", "prefill", "decode", "token 3"])
async def test_a_client_that_leaves_cancels(http, door, stage, stream):
    door.play.gates[stage] = asyncio.Event()
    body = {"prompt": "x", "stream": stream, "n": 2}
    request = asyncio.create_task(http.post(COMPLETIONS, json=body))
    if stage in ("queue", "prefill"):
        await until(lambda: len(door.play.submitted) == 2)
    else:
        await until(lambda: door.play.follows == 2)
    request.cancel()
    await asyncio.wait({request})
    await until(lambda: len(door.play.cancelled) == 2)
    assert not door.play.finished
    door.play.gates.clear()
    assert (await http.post(COMPLETIONS, json={"prompt": "x"})).status_code == 200


async def test_a_stop_string_ends_the_request(http, door):
    body = {"prompt": "x", "stop": ["o, w", "zzz"], "max_tokens": 100, "logprobs": 1}
    door.play.gates["token 12"] = asyncio.Event()
    answer = (await http.post(COMPLETIONS, json=body)).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hell", "stop")
    assert choice["stop_reason"] == "o, w"
    assert choice["logprobs"]["tokens"] == ["H", "e", "l", "l"]
    assert answer["usage"]["sps2"]["decode_bytes"] is None
    assert answer["usage"]["sps2"]["exchange_bytes"] == 100
    await until(lambda: door.play.cancelled)
