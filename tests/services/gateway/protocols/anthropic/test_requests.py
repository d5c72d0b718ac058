"""Every field that Anthropic's clients can send is supported, ignored, or refused by name."""

import json
import typing
from pathlib import Path

import httpx
import pytest
from anthropic import types
from anthropic.types import beta, message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_params
from anthropic.types.beta import message_create_params as beta_create_params

from sps2.common import api
from sps2.common.errors import Invalid
from sps2.services.gateway.protocols.anthropic import requests
from sps2.services.gateway.protocols.anthropic.requests import CountTokensRequest, MessagesRequest

DOCS = Path(__file__).parents[5] / "docs"
HI = [{"role": "user", "content": "hi"}]


def fields(*kinds):
    return {name for kind in kinds for name in typing.get_type_hints(kind)}


def kinds(union):
    """The values of `type` in a union of the package's types, and their fields."""
    found = {}
    for kind in filter(lambda each: isinstance(each, type), typing.get_args(union)):
        hints = typing.get_type_hints(kind)
        for name in typing.get_args(hints["type"]):
            found[name] = set(hints)
    return found


def test_knows_every_field_of_the_anthropic_package():
    create = fields(
        message_create_params.MessageCreateParamsStreaming,
        message_create_params.MessageCreateParamsNonStreaming,
        beta_create_params.MessageCreateParamsStreaming,
        beta_create_params.MessageCreateParamsNonStreaming,
    )
    assert create <= set(MessagesRequest.__struct_fields__)
    counted = fields(
        message_count_tokens_params.MessageCountTokensParams,
        beta_count_params.MessageCountTokensParams,
    )
    assert counted <= set(CountTokensRequest.__struct_fields__)
    for theirs, own in (
        (types.ToolParam, requests.Tool),
        (types.TextBlockParam, requests.TextBlock),
        (types.TextBlockParam, requests.Block),
        (types.ToolUseBlockParam, requests.Block),
        (types.ToolResultBlockParam, requests.Block),
        (types.ThinkingBlockParam, requests.Block),
        (types.RedactedThinkingBlockParam, requests.Block),
        (types.ThinkingConfigEnabledParam, requests.Thinking),
        (types.ToolChoiceToolParam, requests.ToolChoice),
        (beta.BetaOutputConfigParam, requests.OutputConfig),
    ):
        assert fields(theirs) <= set(own.__struct_fields__), theirs


def test_knows_every_field_of_every_tool():
    for union in (types.ToolUnionParam, beta.BetaToolUnionParam):
        for kind in typing.get_args(union):
            assert fields(kind) <= set(requests.Tool.__struct_fields__), kind


def test_the_page_names_every_field():
    page = (DOCS / "anthropic.md").read_text(encoding="utf-8")
    names = set(MessagesRequest.__struct_fields__) - {"model"}
    assert not {name for name in names if f"`{name}`" not in page}


def test_null_is_the_same_as_absent():
    nulls = dict.fromkeys(MessagesRequest.__struct_fields__)
    told = api.check(nulls | {"messages": HI, "max_tokens": 4}, MessagesRequest)
    assert told == api.check({"messages": HI, "max_tokens": 4}, MessagesRequest)


def test_every_block_is_known_or_refused_by_name():
    known = {"text", "tool_use", "tool_result", "thinking", "redacted_thinking"}
    union = (types.ContentBlockParam, beta.BetaContentBlockParam)
    for name in {each for one in union for each in kinds(one)} - known:
        body = {"messages": [{"role": "user", "content": [{"type": name}]}], "max_tokens": 4}
        with pytest.raises(Invalid) as caught:
            api.parse(json.dumps(body).encode(), MessagesRequest)
        assert caught.value.field == "messages[0].content[0].type"
        assert caught.value.code == "unsupported_parameter", name


UNSUPPORTED = [
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"name": "computer", "display_width_px": 9}]}, "tools[0].display_width_px"),
    ({"mcp_servers": [{"type": "url", "url": "x", "name": "y"}]}, "mcp_servers"),
    ({"container": "c"}, "container"),
    ({"thread": {"type": "a"}}, "thread"),
    ({"compaction": {}}, "compaction"),
]
WRONG = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b"}]}]},
        "messages[0].content[0].input",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]},
        "messages[0].content[0]",
    ),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": None}, "max_tokens"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"thinking": {"type": "on"}}, "thinking.type"),
    ({"max_token": 4}, "max_token"),
]


async def test_names_the_field_at_fault(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        for change, field in UNSUPPORTED + WRONG:
            body = {"messages": HI, "max_tokens": 4} | change
            answer = await http.post("/v1/messages", json=body)
            told = answer.json()
            assert (answer.status_code, told["type"]) == (400, "error"), change
            assert told["error"]["type"] == "invalid_request_error"
            assert f"`{field}`" in told["error"]["message"], told


CLAUDE_CODE = {
    "model": "tiny",
    "max_tokens": 60,
    "stream": True,
    "system": [
        {"type": "text", "text": "S", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"type": "text", "text": "T", "cache_control": {"type": "ephemeral"}},
    ],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "r", "cache_control": None},
                {"type": "text", "text": "l", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ],
    "metadata": {"user_id": '{"device_id":"d","account_uuid":"","session_id":"s"}'},
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "temperature": 1,
}
"""As the terminal client sends it in its first turn, without tools."""
HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
    "anthropic-dangerous-direct-browser-access": "true",
    "x-api-key": "none",
    "x-app": "cli",
    "x-stainless-retry-count": "0",
}


async def test_takes_what_claude_code_sends(door):
    door.play.answer = lambda prompt: prompt
    async with httpx.AsyncClient(base_url=door.url, timeout=60, headers=HEADERS) as http:
        answer = await http.post("/v1/messages?beta=true", json=CLAUDE_CODE)
        counted = await http.post(
            "/v1/messages/count_tokens?beta=true",
            json={key: CLAUDE_CODE[key] for key in ("model", "system", "messages", "thinking")},
        )
    assert answer.status_code == 200, answer.text
    prompt = "system:S\nT\nuser:r\nl\nassistant:"
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:5] == "data:"]
    texts = [each["delta"].get("text", "") for each in events if "delta" in each]
    assert "".join(texts) == prompt
    assert counted.json() == {"input_tokens": len(prompt)}
