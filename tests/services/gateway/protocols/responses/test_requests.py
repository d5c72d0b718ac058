"""Every field that clients of the Responses API can send is supported, ignored, or refused."""

import json
import typing
from pathlib import Path

import httpx
import pytest
from openai.types import responses as types
from openai.types import shared_params
from openai.types.responses import response_create_params as create_params
from openai.types.responses import response_input_item_param as item_params
from openai.types.responses import response_input_param, tool_param

from sps2.common import api
from sps2.common.errors import Invalid
from sps2.services.gateway.protocols.responses import items, requests
from sps2.services.gateway.protocols.responses.requests import ResponsesRequest

DOCS = Path(__file__).parents[5] / "docs"


def fields(*kinds):
    return {name for kind in kinds for name in typing.get_type_hints(kind)}


def words(hint):
    if isinstance(hint, str):
        return {hint}
    return {word for each in typing.get_args(hint) for word in words(each)}


def types_of(union):
    """The values of `type` in a union of the package's types."""
    kinds = [each for each in typing.get_args(union) if isinstance(each, type)]
    return {word for kind in kinds for word in words(typing.get_type_hints(kind)["type"])}


def test_knows_every_field_of_the_openai_package():
    create = fields(
        create_params.ResponseCreateParamsStreaming, create_params.ResponseCreateParamsNonStreaming
    )
    assert create <= set(ResponsesRequest.__struct_fields__)
    for theirs, own in (
        (types.FunctionToolParam, requests.Tool),
        (types.ToolChoiceFunctionParam, requests.Choice),
        (types.ToolChoiceAllowedParam, requests.Choice),
        (types.ResponseTextConfigParam, requests.TextConfig),
        (types.ResponseFormatTextJSONSchemaConfigParam, requests.Format),
        (shared_params.Reasoning, requests.Reasoning),
        (create_params.StreamOptions, requests.StreamOptions),
        (types.EasyInputMessageParam, items.Item),
        (response_input_param.Message, items.Item),
        (types.ResponseOutputMessageParam, items.Item),
        (types.ResponseFunctionToolCallParam, items.Item),
        (item_params.FunctionCallOutput, items.Item),
        (types.ResponseReasoningItemParam, items.Item),
        (item_params.ItemReference, items.Item),
        (types.ResponseInputTextParam, items.Part),
        (types.ResponseOutputTextParam, items.Part),
        (types.ResponseOutputRefusalParam, items.Part),
    ):
        assert fields(theirs) <= set(own.__struct_encode_fields__), theirs


def test_the_page_names_every_field():
    page = (DOCS / "responses.md").read_text(encoding="utf-8")
    names = set(ResponsesRequest.__struct_fields__) - {"model"}
    assert not {name for name in names if f"`{name}`" not in page}


def test_null_is_the_same_as_absent():
    nulls = dict.fromkeys(ResponsesRequest.__struct_fields__)
    assert api.check(nulls | {"input": "x"}, ResponsesRequest) == ResponsesRequest(input="x")


def refusal(body):
    with pytest.raises(Invalid) as caught:
        api.parse(json.dumps({"input": "x"} | body).encode(), ResponsesRequest)
    return caught.value.field, caught.value.code


def test_every_item_and_tool_is_known_or_refused_by_name():
    known = {"message", "function_call", "function_call_output", "reasoning", "item_reference"}
    others = types_of(item_params.ResponseInputItemParam) - known
    assert len(others) > 20
    for name in others:
        body = {"input": [{"type": name}]}
        assert refusal(body) == ("input[0].type", "unsupported_parameter"), name
    others = types_of(tool_param.ToolParam) - {"function"}
    assert len(others) > 10
    for name in others:
        body = {"tools": [{"type": name}]}
        assert refusal(body) == ("tools[0].type", "unsupported_parameter"), name


UNSUPPORTED = [
    ({"truncation": "auto"}, "truncation"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0].type",
    ),
]
WRONG = [
    ({"input": []}, "input"),
    ({"input": None}, "input"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]}, "input[0].arguments"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_tokens": 4}, "max_tokens"),
]


async def test_names_the_field_at_fault(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        for change, field in UNSUPPORTED + WRONG:
            answer = await http.post("/v1/responses", json={"input": "x"} | change)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, field), (change, error)
            if (change, field) in UNSUPPORTED:
                assert error["code"] == "unsupported_parameter"


CODEX = {
    "model": "tiny",
    "instructions": "I",
    "input": [
        {
            "type": "message",
            "role": "developer",
            "content": [{"type": "input_text", "text": "J"}],
        },
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "b"}],
            "phase": "final_answer",
        },
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "c"}]},
    ],
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
    "text": {"verbosity": "medium"},
    "client_metadata": {"x-codex-installation-id": "i"},
}
"""As the terminal client sends it in its second turn, without tools."""


async def test_takes_what_codex_sends(door):
    door.play.answer = lambda prompt: prompt
    headers = {"originator": "codex_cli_rs", "session_id": "s", "accept": "text/event-stream"}
    async with httpx.AsyncClient(base_url=door.url, timeout=60, headers=headers) as http:
        answer = await http.post("/v1/responses", json=CODEX)
    assert answer.status_code == 200, answer.text
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:5] == "data:"]
    done = [each["item"] for each in events if each["type"] == "response.output_item.done"]
    assert done[0]["content"][0]["text"] == "system:I\nJ\nuser:a\nassistant:b\nuser:c\nassistant:"
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["usage"]["total_tokens"] > 0
