"""Calls of tools go out and their results come back, through both protocols."""

import json
import shutil
from typing import Any

import anthropic
import httpx
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from sps2.common.config import Gateway

from ..conftest import opened

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ASK = "Weather?"


@pytest.fixture
async def door(folder, tmp_path):
    """A gateway whose model has the context for descriptions of tools."""
    roomy = shutil.copytree(folder, tmp_path / "tiny")
    config = json.loads((roomy / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 4000
    (roomy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    gateway = Gateway(tool_parser="hermes", reasoning_parser="think")
    async with opened(roomy, gateway=gateway) as door:
        door.play.answer = answer
        yield door


def answer(prompt):
    return "Rain, 7 degrees." if "7 degrees" in prompt else f"I look.\n{CALL}"


async def test_messages(door):
    tool: Any = {"name": "weather", "description": "The weather.", "input_schema": SCHEMA}
    turns: list[Any] = [{"role": "user", "content": ASK}]
    asked: Any = {"model": "tiny", "max_tokens": 150, "tools": [tool]}
    async with AsyncAnthropic(base_url=door.url, api_key="none", max_retries=0) as client:
        whole = await client.messages.create(**asked, messages=turns)
        counted = await client.messages.count_tokens(model="tiny", messages=turns, tools=[tool])
        async with client.messages.stream(**asked, messages=turns) as stream:
            streamed = await stream.get_final_message()
        for message in (whole, streamed):
            assert message.stop_reason == "tool_use"
            text, call = message.content
            assert text.text.strip() == "I look."
            assert (call.type, call.name, call.input) == ("tool_use", "weather", {"city": "Oslo"})
        turns.append({"role": "assistant", "content": streamed.content})
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "7 degrees"}
        turns.append({"role": "user", "content": [result]})
        last = await client.messages.create(**asked, messages=turns)
    assert last.content[0].text.startswith("Rain")
    assert last.stop_reason == "end_turn"
    assert counted.input_tokens == whole.usage.input_tokens


async def test_responses(door):
    tool: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
    asked: Any = {"model": "tiny", "max_output_tokens": 150, "tools": [tool]}
    async with AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.responses.create(**asked, input=ASK)
        async with client.responses.stream(**asked, input=ASK) as stream:
            async for _ in stream:
                pass
            streamed = await stream.get_final_response()
        for response in (whole, streamed):
            assert response.status == "completed"
            assert response.output_text.strip() == "I look."
            call = response.output[-1]
            assert (call.type, call.name) == ("function_call", "weather")
            assert json.loads(call.arguments) == {"city": "Oslo"}
        result: Any = {
            "type": "function_call_output",
            "call_id": call.call_id,
            "output": "7 degrees",
        }
        last = await client.responses.create(
            **asked, input=[result], previous_response_id=streamed.id
        )
        assert last.output_text.startswith("Rain")
        by_hand = [{"role": "user", "content": ASK}, *streamed.output, result]
        again = await client.responses.create(**asked, input=by_hand, store=False)
    assert again.output_text == last.output_text


def recorded(door):
    """The prompts from now on; the answer to each is "Done."."""
    seen = []

    def say(prompt):
        seen.append(prompt)
        return "Done."

    door.play.answer = say
    return seen


def schema(**properties):
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": [*properties][:1],
        "additionalProperties": False,
    }


TEXT = {"type": "string", "description": "A text."}
STEPS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "content": {"type": "string", "minLength": 1},
            "status": {"type": "string", "enum": ["pending", "in_progress", "completed"]},
        },
        "required": ["content", "status"],
        "additionalProperties": False,
    },
}
SCHEMAS = {
    "Bash": schema(command=TEXT, timeout={"type": "number"}, run_in_background={"type": "boolean"}),
    "TodoWrite": schema(todos=STEPS),
    "mcp__tracker__create_issue": schema(title=TEXT, labels={"type": "array", "items": TEXT}),
}


async def test_claude_code_in_the_middle_of_its_work(door):
    tools = [
        {"name": name, "description": "Does it.", "input_schema": each, "cache_control": None}
        for name, each in SCHEMAS.items()
    ]
    tools[0]["eager_input_streaming"] = True
    body = {
        "model": "tiny",
        "max_tokens": 32_000,
        "stream": True,
        "system": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}],
        "tools": tools,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Fix it."}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "sps2"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}},
                    {"type": "tool_use", "id": "t2", "name": "Read", "input": {}, "caller": None},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [{"type": "text", "text": "a.py"}],
                    },
                    {
                        "type": "tool_result",
                        "tool_use_id": "t2",
                        "content": "<tool_use_error>No such tool: Read</tool_use_error>",
                        "is_error": True,
                        "cache_control": {"type": "ephemeral"},
                    },
                    {"type": "text", "text": "<system-reminder>x</system-reminder>"},
                ],
            },
        ],
        "metadata": {"user_id": "u"},
        "thinking": {"type": "enabled", "budget_tokens": 31_999, "display": "summarized"},
        "context_management": {"edits": []},
        "output_config": {"effort": "high"},
    }
    seen = recorded(door)
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        answer = await http.post("/v1/messages?beta=true", json=body)
    assert answer.status_code == 200, answer.text
    assert '"text_delta","text":"D"' in answer.text.replace(" ", "")
    for name in (*SCHEMAS, "a.py", "Error: <tool_use_error>", "in_progress", "x</system-reminder>"):
        assert name in seen[0]


async def test_codex_in_the_middle_of_its_work(door):
    tools = [
        {
            "type": "function",
            "name": name.lower(),
            "description": "Does it.",
            "strict": False,
            "parameters": {key: value for key, value in each.items() if key != "$schema"},
        }
        for name, each in SCHEMAS.items()
    ]
    call = {"type": "function_call", "name": "bash", "arguments": '{"command": "ls"}'}
    body = {
        "model": "tiny",
        "instructions": "S",
        "input": [
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "Fix."}],
            },
            {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
            call | {"call_id": "c1"},
            call | {"call_id": "c2", "id": "fc_2"},
            {"type": "function_call_output", "call_id": "c1", "output": "a.py"},
            {"type": "function_call_output", "call_id": "c2", "output": '{"exit_code": 1}'},
        ],
        "tools": tools,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
    }
    seen = recorded(door)
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        answer = await http.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    assert "response.completed" in answer.text
    for name in ("bash", "todowrite", "a.py", "exit_code"):
        assert name in seen[0]


async def test_a_forced_call_and_a_schema_make_grammars(door):
    tool: Any = {"name": "weather", "input_schema": SCHEMA}
    turns: Any = [{"role": "user", "content": ASK}]
    form: Any = {"type": "json_schema", "schema": SCHEMA}
    async with AsyncAnthropic(base_url=door.url, api_key="none", max_retries=0) as client:
        asked: Any = {"model": "tiny", "max_tokens": 150, "messages": turns}
        await client.messages.create(**asked, tools=[tool], tool_choice={"type": "any"})
        await client.messages.create(**asked, output_config={"format": form})
        wrong: Any = {"type": "json_schema", "schema": {"type": "nothing"}}
        with pytest.raises(anthropic.BadRequestError, match=r"`output_config\.format\.schema`"):
            await client.messages.create(**asked, extra_body={"output_config": {"format": wrong}})
    async with AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as client:
        tool = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
        asked = {"model": "tiny", "input": ASK, "max_output_tokens": 150}
        await client.responses.create(**asked, tools=[tool], tool_choice="required")
        await client.responses.create(**asked, text={"format": form | {"name": "n"}})
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(**asked, text={"format": wrong | {"name": "n"}})
    assert caught.value.param == "text.format.schema"
    grammars = [each.sampling.grammar for each in door.play.submitted]
    assert len(grammars) == 4
    assert all(grammars)


async def test_thoughts(door):
    door.play.answer = lambda prompt: "<think>Hm.</think>Hi"
    async with AsyncAnthropic(base_url=door.url, api_key="none", max_retries=0) as client:
        message = await client.messages.create(
            model="tiny", max_tokens=90, messages=[{"role": "user", "content": "Hi"}]
        )
    assert [each.type for each in message.content] == ["thinking", "text"]
    assert message.content[0].thinking.strip() == "Hm."
    async with AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as client:
        response: Any = await client.responses.create(model="tiny", input="Hi")
    assert [each.type for each in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text.strip() == "Hm."
