"""Requests of many small parts leave the event loop to others: their parts are read in threads."""

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from sps2.common import api
from sps2.services import gateway

from .asked import CHAT

MANY = 10_000
OWN = tuple(str(Path(module.__file__).parent) for module in (gateway, api))

TURN = {"role": "user", "content": "a"}
TURNS = [TURN] * MANY
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a" * 20}] * MANY}]
INPUTS = [{"type": "input_text", "text": "a" * 20}] * MANY
CALLED = {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": {}}}]}
RESULT = {"role": "tool", "content": "a"}
BODIES = {
    "messages": (CHAT, {"messages": TURNS}),
    "parts": (CHAT, {"messages": PARTS}),
    "estimate": ("/v1/estimate", {"messages": TURNS}),
    "tokenize": ("/tokenize", {"messages": TURNS}),
    "responses": ("/v1/responses", {"input": TURNS}),
    "response parts": ("/v1/responses", {"input": [{"role": "user", "content": INPUTS}]}),
    "anthropic": ("/v1/messages", {"messages": TURNS, "max_tokens": 1}),
    "anthropic blocks": ("/v1/messages", {"messages": PARTS, "max_tokens": 1}),
    "anthropic count": ("/v1/messages/count_tokens", {"messages": TURNS}),
    "ollama": ("/api/chat", {"model": "tiny", "messages": TURNS}),
    "ollama results": (
        "/api/chat",
        {"model": "tiny", "messages": [CALLED, RESULT] * (MANY // 2)},
    ),
}


@contextmanager
def entered_here():
    """Counts how often each function of the gateway and its API is entered in this thread."""
    entered = Counter[str]()

    def seen(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(OWN):
            entered[f"{code.co_filename}:{code.co_qualname}"] += 1

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        yield entered
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize(("path", "body"), BODIES.values(), ids=BODIES)
async def test_the_loop_does_little_for_many_parts(http, door, path, body):
    with entered_here() as entered:
        answer = await http.post(path, json=body)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert "context" in answer.text or "tokens" in answer.text
    assert entered  # its own functions are seen
    assert max(entered.values()) < MANY // 2, entered.most_common(5)


async def test_the_loop_does_little_for_a_long_conversation_that_is_stored(http, door):
    served = door.parts.gateway.served
    door.parts.gateway.served = msgspec.structs.replace(served, max_context=100 * MANY)
    first = await http.post("/v1/responses", json={"input": TURNS})
    assert first.status_code == 200, first.text
    with entered_here() as entered:
        body = {"previous_response_id": first.json()["id"], "input": "b"}
        second = await http.post("/v1/responses", json=body)
    assert second.status_code == 200, second.text
    assert max(entered.values()) < MANY // 2, entered.most_common(5)
