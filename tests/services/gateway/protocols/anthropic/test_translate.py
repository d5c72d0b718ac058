"""Turns of the Messages API become messages of a chat."""

import pytest

from sps2.common import api
from sps2.common.api import FunctionCall, Message, NamedTool, TextPart, ToolCall
from sps2.common.errors import Invalid
from sps2.services.gateway.protocols.anthropic.requests import MessagesRequest
from sps2.services.gateway.protocols.anthropic.translate import chat_of

HI = {"role": "user", "content": "hi"}


def chat(**fields):
    return chat_of(api.check({"messages": [HI], "max_tokens": 4} | fields, MessagesRequest))


def test_calls_and_their_results():
    turns = [
        HI,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "b", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "one"},
                {
                    "type": "tool_result",
                    "tool_use_id": "b",
                    "content": [{"type": "text", "text": "t"}, {"type": "text", "text": "u"}],
                    "is_error": True,
                },
                {"type": "text", "text": "Go on."},
            ],
        },
    ]
    calls = [
        ToolCall("a", FunctionCall("f", '{"x":1}')),
        ToolCall("b", FunctionCall("g", "{}")),
    ]
    assert chat(messages=turns, system="S").messages == [
        Message("system", "S"),
        Message("user", "hi"),
        Message("assistant", [TextPart("I look.")], tool_calls=calls, reasoning_content="Hm."),
        Message("tool", "one", tool_call_id="a"),
        Message("tool", "Error: t\nu", tool_call_id="b"),
        Message("user", [TextPart("Go on.")]),
    ]


def test_an_answer_that_was_begun_goes_on():
    begun = chat(messages=[HI, {"role": "assistant", "content": "He"}])
    assert begun.continue_final_message is True
    assert begun.add_generation_prompt is False
    assert chat().continue_final_message is None


def test_tools_and_choices():
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    tool = {"name": "f", "description": "d", "input_schema": schema, "cache_control": {}}
    told = chat(tools=[tool], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    function = told.tools[0].function
    assert (function.name, function.description, function.parameters) == ("f", "d", schema)
    assert (told.tool_choice, told.parallel_tool_calls) == ("required", False)
    assert chat(tools=[tool]).parallel_tool_calls is None
    for kind in ("auto", "none"):
        assert chat(tools=[tool], tool_choice={"type": kind}).tool_choice == kind
    named = chat(tools=[tool], tool_choice={"type": "tool", "name": "f"}).tool_choice
    assert isinstance(named, NamedTool)
    assert named.function.name == "f"


def test_thinking_and_the_form_of_the_answer():
    assert chat(thinking={"type": "enabled", "budget_tokens": 9}).chat_template_kwargs == {
        "enable_thinking": True
    }
    assert chat(thinking={"type": "disabled"}).chat_template_kwargs == {"enable_thinking": False}
    assert chat(thinking={"type": "adaptive"}).chat_template_kwargs is None
    form = {"type": "json_schema", "schema": {"type": "object"}}
    told = chat(output_config={"effort": "low", "format": form}).response_format
    assert (told.type, told.json_schema.schema) == ("json_schema", {"type": "object"})


def test_a_result_belongs_to_a_call():
    call = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "x"}
    asks = {"role": "assistant", "content": [call]}
    tells = {"role": "user", "content": [{"type": "text", "text": "y"}, result]}
    assert len(chat(messages=[HI, asks, tells]).messages) == 4
    for turns in ([tells], [HI, asks, HI, tells]):
        with pytest.raises(Invalid) as caught:
            chat(messages=turns)
        assert caught.value.field == f"messages[{len(turns) - 1}].content[1].tool_use_id"


def test_a_turn_without_blocks_is_refused_unless_it_is_the_assistants():
    nothing = {"role": "user", "content": []}
    for turns in ([nothing], [HI, nothing], [{"role": "system", "content": []}]):
        with pytest.raises(Invalid) as caught:
            chat(messages=turns)
        assert caught.value.field == f"messages[{len(turns) - 1}].content"
    assert len(chat(messages=[HI, {"role": "assistant", "content": []}, HI]).messages) == 3


def test_blocks_are_in_turns_of_their_roles():
    call = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a"}
    for role, block in (("user", call), ("assistant", result), ("system", result)):
        with pytest.raises(Invalid) as caught:
            chat(messages=[{"role": role, "content": [block]}])
        assert caught.value.field == "messages[0].content[0]"
