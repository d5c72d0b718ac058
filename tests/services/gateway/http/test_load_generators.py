"""Requests in the form of `vllm bench serve`, read as it reads: it strips what arrives together."""

import asyncio
import json

import pytest

from ....waiting import until
from .asked import CHAT, COMPLETIONS

OUTPUT = 5
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
COMPLETION = {
    "model": "tiny",
    "prompt": "abc",
    "repetition_penalty": 1.0,
    "max_tokens": OUTPUT,
    "logprobs": None,
    **STREAM,
}
CONVERSATION = {
    "model": "tiny",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "abc"}]}],
    "max_completion_tokens": OUTPUT,
    **STREAM,
}
SAMPLING = {
    "ignore_eos": True,
    "temperature": 0.0,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.1,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.1,
}
"""What its flags add to the body."""
HEADERS = {"x-request-id": "bench-3f2a-0", "authorization": "Bearer none"}
TOKEN_IDS = [*b"abc"]
BODIES = {
    "completion": (COMPLETIONS, COMPLETION),
    "sampled": (COMPLETIONS, COMPLETION | SAMPLING),
    "token ids": (COMPLETIONS, COMPLETION | {"prompt": TOKEN_IDS, "logprobs": 1}),
    "chat": (CHAT, CONVERSATION),
    "sampled chat": (CHAT, CONVERSATION | SAMPLING),
}


async def events(answer):
    """The objects of a stream. Each part of the body loses the space around it as it comes."""
    held, found = "", []
    async for part in answer.aiter_raw():
        *whole, held = (held + part.decode().strip()).split("\n\n")
        if _is_complete(held):
            whole, held = [*whole, held], ""
        found += [each.strip() for each in whole if each.strip()]
    data = [each.removeprefix("data: ") for each in found if not each.startswith(":")]
    assert data[-1] == "[DONE]"
    return [json.loads(each) for each in data[:-1]]


def _is_complete(held):
    text = held.removeprefix("data: ")
    try:
        return text == "[DONE]" or (text != held and bool(json.loads(text)))
    except ValueError:
        return False


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize(("path", "body"), BODIES.values(), ids=BODIES)
async def test_a_load_generator_sees_all_tokens(http, door, path, body, is_slow):
    if is_slow:
        door.play.gates["prefill"] = asyncio.Event()
    async with http.stream("POST", path, json=body, headers=HEADERS) as answer:
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == HEADERS["x-request-id"]
        reading = asyncio.create_task(events(answer))
        if is_slow:  # the answer has begun, so a sign of life was sent
            await until(lambda: door.play.submitted)
            door.play.gates["prefill"].set()
        *pieces, last = await reading
    choices = [each["choices"][0] for each in pieces]
    texts = [each.get("text") or each.get("delta", {}).get("content") or "" for each in choices]
    assert "".join(texts) == "Hello, world."[:OUTPUT]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == OUTPUT
    assert last["usage"]["prompt_tokens"] == len(
        "abc" if path == COMPLETIONS else "user:abc\nassistant:"
    )
