"""Items become messages of a chat; those of one turn become one message."""

import pytest

from sps2.common import api
from sps2.common.api import FunctionCall, Message, NamedTool, TextPart, ToolCall
from sps2.common.api.drawing import Drawing
from sps2.common.errors import Invalid
from sps2.services.gateway.protocols.responses.items import Item
from sps2.services.gateway.protocols.responses.requests import ResponsesRequest
from sps2.services.gateway.protocols.responses.store import Responses, Stored
from sps2.services.gateway.protocols.responses.translate import asked, begun

USER = {"role": "user", "content": "hi"}


def translated(**fields):
    request = api.check({"input": "x"} | fields, ResponsesRequest)
    return asked(request, Responses(1 << 20, 60), "")


def test_calls_thoughts_and_results():
    given = [
        USER,
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "g", "arguments": '{"x": 1}'},
        {"type": "function_call_output", "call_id": "a", "output": "one"},
        {
            "type": "function_call_output",
            "call_id": "b",
            "output": [{"type": "input_text", "text": "two"}],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "three"},
        {"role": "developer", "content": "Late."},
    ]
    told = translated(input=given, instructions="S")
    calls = [
        ToolCall("a", FunctionCall("f", "{}")),
        ToolCall("b", FunctionCall("g", '{"x": 1}')),
    ]
    assert told.chat.messages == [
        Message("system", "S"),
        Message("user", "hi"),
        Message("assistant", [TextPart("I look.")], tool_calls=calls, reasoning_content="Hm."),
        Message("tool", "one", tool_call_id="a"),
        Message("tool", "two", tool_call_id="b"),
        Message("assistant", tool_calls=[ToolCall("c", FunctionCall("f", "{}"))]),
        Message("tool", "three", tool_call_id="c"),
        Message("developer", "Late."),
    ]
    assert len({item.id for item in told.items}) == len(given)
    assert told.items[1].id == "rs_1"


def test_a_result_belongs_to_a_call():
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "a", "output": "x"}
    assert len(translated(input=[call, result]).chat.messages) == 2
    for given in ([result], [result, call], [call, result, {**call, "call_id": "b"}, result]):
        with pytest.raises(Invalid) as caught:
            translated(input=given)
        assert caught.value.field == "input"


def test_orders_at_the_beginning_are_one_message():
    orders = [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}]
    assert translated(input=[*orders, USER]).chat.messages == [
        Message("system", "a\nb"),
        Message("user", "hi"),
    ]
    assert translated(input=orders).chat.messages == [Message("system", "a\nb")]


def test_tools_and_choices():
    schema = {"type": "object", "properties": {}}
    tool = {"type": "function", "name": "f", "parameters": schema, "strict": True}
    told = translated(tools=[tool], tool_choice="required", parallel_tool_calls=False).chat
    function = told.tools[0].function
    assert (function.name, function.parameters, function.strict) == ("f", schema, True)
    assert (told.tool_choice, told.parallel_tool_calls) == ("required", False)
    named = translated(tools=[tool], tool_choice={"type": "function", "name": "f"}).chat
    assert isinstance(named.tool_choice, NamedTool)
    assert named.tool_choice.function.name == "f"
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "f"}],
    }
    choice = translated(tools=[tool], tool_choice=allowed).chat.tool_choice
    assert choice.allowed_tools.mode == "required"
    assert [each.function.name for each in choice.allowed_tools.tools] == ["f"]


def test_the_form_of_the_answer():
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    told = translated(text={"format": form}).chat.response_format
    assert (told.type, told.json_schema.schema, told.json_schema.strict) == (
        "json_schema",
        {"type": "object"},
        True,
    )
    told = translated(text={"format": {"type": "json_object"}}).chat.response_format
    assert told.type == "json_object"
    for text in (None, {}, {"format": {"type": "text"}, "verbosity": "low"}):
        assert translated(text=text).chat.response_format is None


class Id(str):
    """Counts how often it is looked up."""

    looked_up = 0

    def __hash__(self) -> int:
        Id.looked_up += 1
        return super().__hash__()


def test_many_results_take_no_more_work_each():
    ids = [Id(number) for number in range(500)]
    calls = [Item(type="function_call", call_id=each, name="f", arguments="{}") for each in ids]
    results = [Item(type="function_call_output", call_id=each, output="x") for each in ids]
    request = ResponsesRequest(input=[Item(role="user", content="x"), *calls, *results])
    told = asked(request, Responses(1 << 20, 60), "")
    assert len(told.chat.messages) == 502
    assert Id.looked_up <= 4 * len(ids)


def test_an_item_is_referred_to_once():
    stored = Responses(1 << 20, 60)
    whole = begun(ResponsesRequest(input="x"), "resp_1", "tiny")
    stored.put(Stored(whole, (Item(type="message", id="in_1", role="user", content="hi"),)), "")
    reference = Item(type="item_reference", id="in_1")
    told = asked(ResponsesRequest(input=[reference]), stored, "")
    assert told.chat.messages == [Message("user", "hi")]
    with pytest.raises(Invalid, match="earlier reference") as caught:
        asked(ResponsesRequest(input=[reference, reference]), stored, "")
    assert (caught.value.field, caught.value.code) == ("input[1].id", "response_not_found")


def test_what_a_chat_has_beyond_openais_fields():
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.1,
        "seed": 7,
        "stop": ["."],
        "stop_token_ids": [3],
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": 1.0},
        "ignore_eos": True,
        "min_tokens": 2,
    }
    assert set(given) == set(Drawing.__struct_fields__)
    others = {"cache_salt": "a", "chat_template_kwargs": {"enable_thinking": False}}
    chat = translated(**given, **others).chat
    assert {name: getattr(chat, name) for name in given | others} == given | others
