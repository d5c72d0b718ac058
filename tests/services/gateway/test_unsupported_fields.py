"""What clients send beside what they mean: taken if it asks for nothing, else refused by name."""

import typing

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types.chat import (
    ChatCompletionAllowedToolChoiceParam,
    ChatCompletionAssistantMessageParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionNamedToolChoiceParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionToolMessageParam,
)
from openai.types.chat import completion_create_params as chat_params
from openai.types.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from openai.types.shared_params import FunctionDefinition

from sps2.common import api
from sps2.common.api import (
    ChatRequest,
    CompletionRequest,
    Function,
    Message,
    NamedTool,
    StreamOptions,
    Tool,
    ToolCall,
)

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = {"role": "user", "content": "hi"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.fixture
async def http(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        yield http


@pytest.fixture
async def client(door):
    async with AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_the_openai_client_sends_answers_back(client, door):
    door.play.answer = lambda prompt: str(prompt.count("\n"))
    messages = [HI]
    for turn in (2, 4):
        answer = await client.chat.completions.create(model="tiny", messages=messages)
        messages += [answer.choices[0].message, HI]
        assert answer.choices[0].message.content == str(turn - 1)

    stream = client.chat.completions.stream(model="tiny", messages=messages)
    async with stream as events:
        async for _ in events:
            pass
        streamed = await events.get_final_completion()
    messages += [streamed.choices[0].message, HI]
    parsed = await client.chat.completions.parse(model="tiny", messages=messages)
    messages += [parsed.choices[0].message, HI]
    last = await client.chat.completions.create(model="tiny", messages=messages)
    assert last.choices[0].message.content == "9"


LANGCHAIN = {
    "model": "tiny",
    "stream": False,
    "messages": [
        {"content": "Be brief.", "role": "system"},
        {"content": "hi", "role": "user"},
        {"content": None, "role": "assistant", "tool_calls": []},
        {"content": [{"type": "text", "text": "hi"}], "role": "user", "name": "alice"},
    ],
    "service_tier": None,
    "verbosity": None,
    "reasoning_effort": None,
    "store": False,
    "metadata": {"run": "7"},
}
LITELLM = {
    "model": "tiny",
    "messages": [
        HI,
        {
            "content": "Hello.",
            "role": "assistant",
            "tool_calls": None,
            "function_call": None,
            "provider_specific_fields": {"refusal": None},
            "annotations": [],
            "images": [],
            "thinking_blocks": [],
            "reasoning_content": None,
            "audio": None,
            "refusal": None,
        },
        HI,
    ],
    "response_format": {"type": "text"},
    "parallel_tool_calls": True,
    "tools": None,
}
VERCEL = {
    "model": "tiny",
    "user": "a",
    "max_completion_tokens": 9,
    "max_tokens": 4,
    "tool_choice": "auto",
    "prediction": None,
    "safety_identifier": "a",
    "prompt_cache_key": "a",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"a": 1}}]},
        {"role": "assistant", "content": "", "reasoning_content": ""},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        HI,
    ],
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
}


@pytest.mark.parametrize("body", [LANGCHAIN, LITELLM, VERCEL], ids=["langchain", "litellm", "ai"])
async def test_takes_what_popular_clients_send(http, body):
    answer = await http.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text


HARMLESS = {
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "store": True,
    "modalities": ["text"],
    "service_tier": "flex",
    "reasoning_effort": "low",
    "verbosity": "high",
    "logit_bias": {},
    "stop": "",
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
    "use_beam_search": False,
    "length_penalty": 1,
    "add_generation_prompt": True,
    "chat_template_kwargs": {},
    "echo": False,
    "priority": 0,
    "bad_words": [],
    "stream_options": None,
    "request_id": "a",
    "vllm_xargs": {},
    "kv_transfer_params": None,
    "mm_processor_kwargs": {},
    "media_io_kwargs": None,
    "logits_processors": [],
    "guided_decoding_backend": "xgrammar",
    "structural_tag": None,
    "best_of": 1,
}


async def test_takes_what_asks_for_nothing(http):
    for name, value in HARMLESS.items():
        answer = await http.post(CHAT, json={"messages": [HI], name: value})
        assert answer.status_code == 200, (name, answer.text)
    for best_of in (1, 2):
        body = {"prompt": "x", "n": 2, "best_of": best_of, "suffix": "", "prompt_embeds": None}
        assert (await http.post(COMPLETIONS, json=body)).status_code == 200


UNSUPPORTED = [
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    ({"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice.type"),
    ({"structural_tag": "{}"}, "structural_tag"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "a", "format": "wav"}}, "audio"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"echo": True}, "echo"),
    ({"vllm_xargs": {"a": 1}}, "vllm_xargs"),
    ({"kv_transfer_params": {"do_remote_decode": True}}, "kv_transfer_params"),
    ({"logits_processors": ["a.B"]}, "logits_processors"),
    ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages[0].content[0].type"),
    ({"messages": [HI, {"role": "function", "content": "4"}]}, "messages[1].role"),
    ({"messages": [{**HI, "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
    ({"messages": [{**HI, "tool_call_id": "a"}]}, "messages[0].tool_call_id"),
]


async def test_refuses_by_name_what_would_change_the_answer(http):
    for body, param in UNSUPPORTED:
        answer = await http.post(CHAT, json={"messages": [HI], **body})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), (body, error)
        assert error["code"] == "unsupported_parameter", body
        assert "not supported" in error["message"]


async def test_says_what_was_meant_and_what_is_allowed(http):
    async def told(path, **body):
        answer = await http.post(path, json=body)
        assert answer.status_code == 400
        return answer.json()["error"]

    typo = await told(COMPLETIONS, prompt="x", max_token=1)
    assert typo["code"] == "unknown_field"
    assert typo["message"] == "unknown field `max_token`; did you mean `max_tokens`?"
    nested = await told(COMPLETIONS, prompt="x", sps2={"metod": "ring"})
    assert nested["message"].endswith("did you mean `method`?")
    wrong = await told(COMPLETIONS, prompt="x", sps2={"attention": "quick"})
    assert wrong["param"] == "sps2.attention"
    assert all(word in wrong["message"] for word in ("'quick'", "exact", "balanced", "fast"))
    role = await told(CHAT, messages=[{"role": "robot", "content": "x"}])
    assert "assistant" in role["message"]
    long = await told(CHAT, messages=[{"role": "user", "content": "x" * 300}])
    assert (long["code"], long["param"]) == ("context_length_exceeded", "messages")


def openai_fields(*kinds):
    return {name for kind in kinds for name in typing.get_type_hints(kind)}


def test_knows_every_field_of_the_openai_package():
    """A field is known if null is taken for it, or its own error names it."""
    chat = openai_fields(
        chat_params.CompletionCreateParamsStreaming, chat_params.CompletionCreateParamsNonStreaming
    )
    assert chat <= set(ChatRequest.__struct_fields__)
    completion = openai_fields(CompletionCreateParamsStreaming, CompletionCreateParamsNonStreaming)
    assert completion <= set(CompletionRequest.__struct_fields__)
    nested = {
        Message: (ChatCompletionAssistantMessageParam, ChatCompletionToolMessageParam),
        Tool: (ChatCompletionFunctionToolParam,),
        Function: (FunctionDefinition,),
        ToolCall: (ChatCompletionMessageFunctionToolCallParam,),
        NamedTool: (ChatCompletionNamedToolChoiceParam, ChatCompletionAllowedToolChoiceParam),
    }
    for kind, kinds in nested.items():
        assert openai_fields(*kinds) <= set(kind.__struct_fields__)
    options = openai_fields(ChatCompletionStreamOptionsParam)
    assert options <= set(StreamOptions.__struct_fields__)
    nulls = dict.fromkeys(ChatRequest.__struct_fields__)
    assert api.check(nulls | {"messages": [HI]}, ChatRequest) == ChatRequest(
        messages=[Message("user", "hi")]
    )


VLLM = """
    best_of use_beam_search top_k min_p repetition_penalty length_penalty stop_token_ids
    include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
    spaces_between_special_tokens truncate_prompt_tokens prompt_logprobs allowed_token_ids bad_words
    echo add_special_tokens response_format structured_outputs guided_json guided_regex
    guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern structural_tag
    priority request_id logits_processors return_tokens_as_token_ids return_token_ids cache_salt
    kv_transfer_params vllm_xargs
"""
VLLM_CHATS = """
    include_reasoning add_generation_prompt continue_final_message documents chat_template
    chat_template_kwargs mm_processor_kwargs
"""


def test_knows_the_fields_that_vllm_adds():
    assert set(VLLM.split()) <= set(CompletionRequest.__struct_fields__)
    assert set(f"{VLLM} {VLLM_CHATS}".split()) <= set(ChatRequest.__struct_fields__)
