"""Thoughts, texts and calls become items, one after another."""

import msgspec

from sps2.common.api import ChatChunk, ChatDelta, Delta, FunctionDelta, ToolCallDelta, Usage
from sps2.common.api.usage import PromptTokensDetails
from sps2.services.gateway.protocols.responses.answers import Response
from sps2.services.gateway.protocols.responses.requests import ResponsesRequest
from sps2.services.gateway.protocols.responses.translate import begun
from sps2.services.gateway.protocols.responses.writer import ResponseWriter


def call(number, arguments, name=None):
    if name is None:
        return ToolCallDelta(number, function=FunctionDelta(arguments=arguments))
    function = FunctionDelta(name, arguments)
    return ToolCallDelta(number, f"call_{number}", "function", function)


DELTAS = [
    ChatDelta(0, Delta("assistant", "")),
    ChatDelta(0, Delta(reasoning_content="Let ")),
    ChatDelta(0, Delta(reasoning_content="me.")),
    ChatDelta(0, Delta(content="I look.")),
    ChatDelta(0, Delta(tool_calls=[call(0, '{"a"', "f")])),
    ChatDelta(0, Delta(tool_calls=[call(0, ": 1}"), call(1, "", "g")])),
    ChatDelta(0, Delta(tool_calls=[call(1, "{}")])),
    ChatDelta(0, Delta(), None, "tool_calls"),
]


async def chunks():
    usage = Usage(10, 7, 17, PromptTokensDetails(4))
    for choices, total in [([delta], msgspec.UNSET) for delta in DELTAS] + [([], usage)]:
        yield ChatChunk(
            id="x", created=1, model="tiny", system_fingerprint="", choices=choices, usage=total
        )


async def events():
    kept: list[Response] = []
    first = begun(ResponsesRequest(input="x"), "resp_1", "tiny")
    writer = ResponseWriter(first, kept.append)
    made = [
        msgspec.json.decode(msgspec.json.encode(each)) async for each in writer.streamed(chunks())
    ]
    assert kept == [writer.response]
    return msgspec.json.decode(msgspec.json.encode(made))


async def test_the_response():
    whole = (await events())[-1]["response"]
    assert whole["status"] == "completed"
    kinds = [(each["type"], each["status"]) for each in whole["output"]]
    assert kinds == [
        ("reasoning", "completed"),
        ("message", "completed"),
        ("function_call", "completed"),
        ("function_call", "completed"),
    ]
    thoughts, message, first, second = whole["output"]
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "Let me."}]
    assert thoughts["summary"] == []
    assert message["content"][0]["text"] == "I look."
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_0", "f", '{"a": 1}')
    assert (second["call_id"], second["name"], second["arguments"]) == ("call_1", "g", "{}")
    usage = whole["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (10, 7, 17)
    assert usage["input_tokens_details"] == {"cached_tokens": 4}
    assert len({each["id"] for each in whole["output"]}) == 4


async def test_the_events():
    made = await events()
    assert [each["sequence_number"] for each in made] == [*range(len(made))]
    names = [each["type"].removeprefix("response.") for each in made]
    assert names == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    items = [each for each in made if each["type"] == "response.output_item.added"]
    assert [each["output_index"] for each in items] == [0, 1, 2, 3]
    assert [each["item"]["status"] for each in items] == ["in_progress"] * 4
    for item in items:
        own = [each for each in made if each.get("output_index") == item["output_index"]]
        assert {each.get("item_id", item["item"]["id"]) for each in own} == {item["item"]["id"]}
    assert items[2]["item"]["arguments"] == ""
    assert made[18]["arguments"] == '{"a": 1}'
