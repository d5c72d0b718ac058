"""Answers are remembered by what the client was sent, each for whom it was made."""

import struct
from typing import Any

import httpx
import msgspec
import pytest

from sps2.common.api import (
    ChatDelta,
    ChatRequest,
    Delta,
    FunctionCall,
    FunctionDelta,
    Message,
    TextPart,
    ToolCall,
    ToolCallDelta,
)
from sps2.common.messages import Sampling
from sps2.common.text.tokens import Tokenizer
from sps2.services.gateway.generate import Job
from sps2.services.gateway.text import Piece, Spoken
from sps2.services.gateway.turn_memory import TURN_BYTES, Scope, TurnMemory

END, BEGIN = 256, 257
SCOPE = Scope("alice", "")
JOB = Job("a", (1, 2), Sampling(100, 0, stop_token_ids=(END,)))
CALL = ToolCall("call_1", FunctionCall("find", '{"a": 1, "b": [2]}'))


@pytest.fixture
def tokenizer(folder):
    return Tokenizer(folder)


@pytest.fixture
def memory(tokenizer):
    return TurnMemory(tokenizer)


def piece(text: str, *ids: int, **more: Any) -> Piece:
    return Piece(text, tuple(Spoken(each, 0, None) for each in ids), **more)


def told(memory, text="yes", ids=(*b"yes", END), scope=SCOPE, finish="stop", **fields):
    """One answer of content alone, in two pieces."""
    listener = memory.listener(ChatRequest(messages=[], **fields), scope, [JOB])
    listener.sampled(0, piece(text[:1], ids[0]))
    listener.sent(ChatDelta(0, Delta("assistant", text[:1])))
    listener.sampled(0, piece(text[1:], *ids[1:], finish=finish))
    listener.sent(ChatDelta(0, Delta(content=text[1:]), finish_reason=finish))


def found(memory, scope=SCOPE, **message):
    return memory.recall(scope)(Message("assistant", **message))


def test_an_answer_is_found_by_its_content(memory):
    told(memory)
    turn = found(memory, content="yes")
    assert [*turn.ids] == [*b"yes"]
    assert (turn.opening, turn.texts, turn.is_plain) == ("assistant:", ("yes",), True)
    assert found(memory, content=[TextPart("yes")]) is not None
    for other in ({"content": "yes "}, {"content": "yes", "reasoning_content": "hm"}, {}):
        assert found(memory, **other) is None
    assert memory.recall(SCOPE)(Message("user", "yes")) is None


def test_an_answer_that_was_cut_has_all_its_tokens(memory):
    told(memory, ids=b"yes", finish="length")
    assert [*found(memory, content="yes").ids] == [*b"yes"]


def test_each_sees_its_own_answers_alone(memory):
    told(memory)
    for scope in (Scope("bob", ""), Scope("", ""), Scope("alice", "salt")):
        assert found(memory, scope, content="yes") is None


@pytest.mark.parametrize(
    "fields",
    [
        {"skip_special_tokens": False},
        {"include_stop_str_in_output": True},
        {"continue_final_message": True},
        {"add_generation_prompt": False},
    ],
)
def test_an_answer_that_is_no_turn_as_sampled_is_not_remembered(memory, fields):
    told(memory, **fields)
    assert found(memory, content="yes") is None


def test_what_the_text_does_not_show_is_not_remembered(memory):
    told(memory, ids=(*b"ye", BEGIN, *b"s", END))
    told(memory, text="", ids=(END,))
    assert found(memory, content="yes") is found(memory, content="") is None
    listener = memory.listener(ChatRequest(messages=[]), SCOPE, [JOB])
    listener.sampled(0, piece("yes", *b"yes", finish="stop", stop=" no"))
    listener.sent(ChatDelta(0, Delta(content="yes"), finish_reason="stop"))
    assert found(memory, content="yes") is None
    listener = memory.listener(ChatRequest(messages=[]), SCOPE, [JOB])
    listener.sampled(0, piece(" yes", *b" yes", END, finish="stop"))
    listener.sent(ChatDelta(0, Delta(content="yes"), finish_reason="stop"))
    assert found(memory, content="yes") is None


def calls(memory, raw="<think>hm</think>find", ids=(*b"find", BEGIN, END)):
    listener = memory.listener(ChatRequest(messages=[]), SCOPE, [JOB])
    listener.sampled(0, piece(raw, *ids, finish="stop"))
    begun = ToolCallDelta(0, "call_1", "function", FunctionDelta("find", '{"a": 1,'))
    rest = ToolCallDelta(0, function=FunctionDelta(arguments=' "b": [2]}'))
    listener.sent(ChatDelta(0, Delta(reasoning_content="hm")))
    listener.sent(ChatDelta(0, Delta(tool_calls=[begun])))
    listener.sent(ChatDelta(0, Delta(tool_calls=[rest]), finish_reason="tool_calls"))


def test_calls_and_thoughts_are_part_of_an_answer(memory):
    calls(memory)
    turn = found(memory, tool_calls=[CALL], reasoning_content="hm")
    assert [*turn.ids] == [*b"find", BEGIN]
    assert (turn.texts, turn.is_plain) == (("", "hm", "find"), False)
    anew = ToolCall("call_1", FunctionCall("find", '{"b":[2],"a":1}'))
    assert found(memory, tool_calls=[anew], reasoning_content="hm") is not None
    for other in (
        ToolCall("call_2", CALL.function),
        ToolCall("call_1", FunctionCall("seek", CALL.function.arguments)),
        ToolCall("call_1", FunctionCall("find", '{"a": 2, "b": [2]}')),
    ):
        assert found(memory, tool_calls=[other], reasoning_content="hm") is None
    assert found(memory, tool_calls=[CALL]) is None


def test_calls_whose_tokens_do_not_name_them_are_not_remembered(memory):
    calls(memory, raw='{"a": 1, "b": [2]}')
    assert found(memory, tool_calls=[CALL], reasoning_content="hm") is None
    calls(memory, ids=(*b"find", END, *b"more", END))
    assert found(memory, tool_calls=[CALL], reasoning_content="hm") is None


def test_the_least_recently_used_are_forgotten(tokenizer):
    few = TurnMemory(tokenizer, most_turns=2)
    for text in ("one", "two"):
        told(few, text, (*text.encode(), END))
    assert found(few, content="one") is not None
    told(few, "six", (*b"six", END))
    assert [found(few, content=each) is not None for each in ("one", "two", "six")] == [
        True,
        False,
        True,
    ]
    small = TurnMemory(tokenizer, most_bytes=2 * TURN_BYTES)
    for text in ("one", "two"):
        told(small, text, (*text.encode(), END))
    told(small, "two", (*b"two", END))
    assert [found(small, content=each) is not None for each in ("one", "two")] == [False, True]


async def test_a_second_turn_has_the_sampled_tokens(door, monkeypatch):
    """The gateway's tokens are bytes: those of the answer are made others, of the same text."""
    tokenizer = door.parts.gateway._tokenizer
    door.play.answer = lambda prompt: "yes"
    real = tokenizer.encode
    monkeypatch.setattr(
        tokenizer,
        "encode",
        lambda text, *how, **more: real(text.replace("yes", "YES"), *how, **more),
    )
    messages = [{"role": "user", "content": "hi"}]
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:

        async def ask(messages, **more):
            body = {"messages": messages, "return_token_ids": True, **more}
            return (await http.post("/v1/chat/completions", json=body)).json()

        first = await ask(messages)
        messages += [first["choices"][0]["message"], messages[0]]
        assert bytes((await ask(messages))["prompt_token_ids"]) == (
            b"user:hi\nassistant:yes\nuser:hi\nassistant:"
        )
        assert b"YES" in bytes((await ask(messages, cache_salt="x"))["prompt_token_ids"])


async def test_a_call_comes_back_as_the_model_wrote_it(door):
    called = '<tool_call>\n{"arguments":{"a":1},   "name":"f"}\n</tool_call>'
    door.play.answer = lambda prompt: "done" if "</tool_response>" in prompt else called
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    user = {"role": "user", "content": "go"}
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:

        async def ask(messages, **more):
            body = {"messages": messages, "max_tokens": 70, "tools": [], **more}
            answer = await http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            sent = door.play.submitted[-1].prompt
            ids = struct.unpack(f"<{len(sent) // 4}i", sent)
            return answer.json()["choices"][0], bytes(ids).decode()

        choice, _ = await ask([user], tools=tools, truncate_prompt_tokens=20)
        assert choice["finish_reason"] == "tool_calls"
        result = {
            "role": "tool",
            "tool_call_id": choice["message"]["tool_calls"][0]["id"],
            "content": "2",
        }
        messages = [user, choice["message"], result]
        _, prompt = await ask(messages)
        assert f"assistant:{called}\nuser:<tool_response>" in prompt
        _, prompt = await ask(messages, cache_salt="x")
        assert '{"name": "f", "arguments": {"a": 1}}' in prompt


async def test_other_protocols_bring_answers_back_too(door):
    """Anthropic's has arguments as objects, and calls as parts of the content."""
    called = 'Well.\n<tool_call>\n{"arguments":{"b":1,"a":2},   "name":"f"}\n</tool_call>'
    door.play.answer = lambda prompt: "done" if "</tool_response>" in prompt else called
    tool = {"name": "f", "input_schema": {"type": "object"}}
    user = {"role": "user", "content": "go"}
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:

        async def ask(messages, **more):
            body = {"model": "tiny", "messages": messages, "max_tokens": 90, **more}
            answer = await http.post("/v1/messages", json=body)
            assert answer.status_code == 200, answer.text
            sent = door.play.submitted[-1].prompt
            ids = struct.unpack(f"<{len(sent) // 4}i", sent)
            return answer.json()["content"], bytes(ids).decode()

        door.parts.gateway.served = msgspec.structs.replace(
            door.parts.gateway.served, max_context=2000
        )
        content, _ = await ask([user], tools=[tool])
        call = content[-1]
        assert call["type"] == "tool_use"
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": "2"}
        answer = {"role": "assistant", "content": content}
        turns = [user, answer, {"role": "user", "content": [result]}]
        _, prompt = await ask(turns)
        assert f"assistant:{called}\nuser:<tool_response>" in prompt
        counted = await http.post("/v1/messages/count_tokens", json={"messages": turns})
        assert counted.json() == {"input_tokens": len(prompt)}
