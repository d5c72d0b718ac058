"""The official Anthropic client against `/v1/messages`."""

import asyncio
import json
from typing import Any

import anthropic
import httpx
import msgspec
import pytest
from anthropic import AsyncAnthropic

from sps2.common.errors import Internal, PeerLost, Refused

from .....waiting import until

HI = [{"role": "user", "content": "Hi"}]
ASKED = {"model": "tiny", "max_tokens": 50, "messages": HI}


@pytest.fixture
async def client(door):
    async with AsyncAnthropic(base_url=door.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def http(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        yield http


async def test_answers(client, door):
    answer = await client.messages.create(**ASKED)
    assert [(each.type, each.text) for each in answer.content] == [("text", "Hello, world.")]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert (answer.role, answer.type, answer.model) == ("assistant", "message", "tiny")
    assert answer.id.startswith("msg_")
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens) == (len("user:Hi\nassistant:"), 14)
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (0, 0)
    sampling = door.play.submitted[0].sampling
    assert sampling.max_tokens == 50


async def test_streams(client):
    async with client.messages.stream(**ASKED) as stream:
        kinds = [event.type async for event in stream if event.type != "text"]
        whole = await stream.get_final_message()
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert whole.content[0].text == "Hello, world."
    assert whole.stop_reason == "end_turn"
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (18, 14)


async def test_events_have_the_names_of_their_types(http):
    answer = await http.post("/v1/messages", json=ASKED | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.splitlines()
    names = [each.removeprefix("event: ") for each in lines if each.startswith("event: ")]
    events = [json.loads(each[6:]) for each in lines if each.startswith("data: ")]
    assert names == [each["type"] for each in events]
    assert events[0]["message"]["usage"]["input_tokens"] == 18
    assert events[0]["message"]["content"] == []
    assert "[DONE]" not in answer.text


async def test_limits_and_stop_sequences(client, door):
    answer = await client.messages.create(**ASKED | {"max_tokens": 4})
    assert (answer.content[0].text, answer.stop_reason) == ("Hell", "max_tokens")
    answer = await client.messages.create(**ASKED, stop_sequences=["zzz", "o, w"])
    assert answer.content[0].text == "Hell"
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "o, w")
    async with client.messages.stream(**ASKED, stop_sequences=["wor", "o, w"]) as stream:
        whole = await stream.get_final_message()
    assert (whole.stop_reason, whole.stop_sequence) == ("stop_sequence", "o, w")
    special = await client.messages.create(**ASKED, stop_sequences=["<|begin|>", "<|end|>"])
    assert special.content[0].text == "Hello, world."
    assert (special.stop_reason, special.stop_sequence) == ("stop_sequence", "<|end|>")
    await client.messages.create(**ASKED, extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 7})
    sampling = door.play.submitted[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)


async def test_an_answer_is_cut_to_the_context(client, door):
    door.play.answer = lambda prompt: "x" * 300
    answer = await client.messages.create(**ASKED | {"max_tokens": 8_000})
    assert answer.content[0].text == "x" * (200 - 18)
    assert answer.stop_reason == "model_context_window_exceeded"
    with pytest.raises(anthropic.BadRequestError, match="context is 200 tokens"):
        await client.messages.create(**ASKED, system="x" * 200)


async def test_shows_the_whole_conversation(client, door):
    door.play.answer = lambda prompt: prompt
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
        {"role": "user", "content": "d"},
    ]
    system = [{"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}}]
    answer = await client.messages.create(
        model="tiny", max_tokens=60, messages=turns, system=[*system, *system]
    )
    assert answer.content[0].text == "system:Be\nBe\nuser:a\nb\nassistant:c\nuser:d\nassistant:"


async def test_goes_on_from_an_answer_that_was_begun(client, door):
    door.play.answer = lambda prompt: f"<{prompt}>"
    turns = [*HI, {"role": "assistant", "content": "He"}]
    answer = await client.messages.create(**ASKED | {"messages": turns})
    assert answer.content[0].text == "<user:Hi\nassistant:He>"
    counted = await client.messages.count_tokens(model="tiny", messages=turns)
    assert counted.input_tokens == answer.usage.input_tokens == len("user:Hi\nassistant:He")


async def test_counts_tokens(client):
    counted = await client.messages.count_tokens(model="tiny", messages=HI, system="Be brief.")
    assert counted.input_tokens == len("system:Be brief.\nuser:Hi\nassistant:")


@pytest.mark.parametrize("choice", [{"type": "none"}, {"type": "tool", "name": "f"}])
async def test_counts_the_tools_that_the_model_is_shown(client, door, choice):
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in ("f", "g")]
    asked = {"model": "tiny", "messages": HI, "tools": tools, "tool_choice": choice}
    served = door.parts.gateway.served
    door.parts.gateway.served = msgspec.structs.replace(served, max_context=2000)
    counted = await client.messages.count_tokens(**asked)
    answer = await client.messages.create(max_tokens=50, **asked)
    assert counted.input_tokens == answer.usage.input_tokens


def told(caught: Any) -> Any:
    """The body of the error that a client raised."""
    return caught.value.body


async def test_raises_the_clients_errors(client, door):
    with pytest.raises(anthropic.BadRequestError) as bad:
        await client.messages.create(**ASKED, extra_body={"temperature": 9})
    body = told(bad)
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert "`temperature`" in body["error"]["message"]
    assert body["request_id"]
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await client.messages.create(**ASKED | {"model": "claude-opus-5-5"})
    assert told(unknown)["error"]["type"] == "not_found_error"
    assert "served_model_name" in told(unknown)["error"]["message"]
    door.play.fail["queue"] = Refused("full", 2.5)
    with pytest.raises(anthropic.RateLimitError) as full:
        await client.messages.create(**ASKED)
    assert full.value.response.headers["retry-after"] == "3"
    door.play.fail["queue"] = PeerLost("prefill-0")
    with pytest.raises(anthropic.InternalServerError) as lost:
        await client.messages.create(**ASKED, stream=True)
    assert told(lost)["error"]["type"] == "overloaded_error"


async def test_errors_outside_of_its_routes_have_its_form(http):
    for answer in (await http.get("/v1/messages"), await http.post("/v1/messages/nothing")):
        assert answer.status_code in (404, 405)
        assert answer.json()["type"] == "error"
        assert answer.json()["request_id"] == answer.headers["request-id"]
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
    answer = await http.post("/v1/messagesnothing")
    assert "type" not in answer.json()
    assert "request-id" not in answer.headers


async def test_an_error_inside_a_stream_is_an_event(client, door):
    door.play.fail["token 5"] = Internal("broken")
    stream = await client.messages.create(**ASKED, stream=True)
    with pytest.raises(anthropic.APIStatusError) as caught:
        async for _ in stream:
            pass
    assert told(caught)["error"]["type"] == "api_error"


async def test_a_silent_stream_is_kept_alive_by_pings(http, door):
    door.play.gates["prefill"] = asyncio.Event()
    async with http.stream("POST", "/v1/messages", json=ASKED | {"stream": True}) as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "event: ping"
        assert json.loads((await anext(lines))[6:]) == {"type": "ping"}
        door.play.gates["prefill"].set()
        rest = [line async for line in lines]
    assert "event: message_stop" in rest


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels(http, door, stream):
    door.play.gates["token 3"] = asyncio.Event()
    request = asyncio.create_task(http.post("/v1/messages", json=ASKED | {"stream": stream}))
    await until(lambda: door.play.follows == 1)
    request.cancel()
    await asyncio.wait({request})
    await until(lambda: len(door.play.cancelled) == 1)
    assert not door.play.finished
