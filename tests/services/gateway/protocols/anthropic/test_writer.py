"""Thoughts, texts and calls become blocks, one after another."""

from sps2.common.api import ChatChunk, ChatDelta, Delta, FunctionDelta, ToolCallDelta, Usage
from sps2.common.api.usage import PromptTokensDetails
from sps2.services.gateway.protocols.anthropic import answers
from sps2.services.gateway.protocols.anthropic.answers import (
    BlockStart,
    BlockStop,
    Text,
    Thought,
    ToolUse,
)
from sps2.services.gateway.protocols.anthropic.writer import SIGNATURE, MessageWriter

USAGE = Usage(10, 7, 17, PromptTokensDetails(4))


def call(number, arguments, name=None):
    if name is None:
        return ToolCallDelta(number, function=FunctionDelta(arguments=arguments))
    function = FunctionDelta(name, arguments)
    return ToolCallDelta(number, f"call_{number}", "function", function)


DELTAS = [
    ChatDelta(0, Delta("assistant", "")),
    ChatDelta(0, Delta(reasoning_content="Let ")),
    ChatDelta(0, Delta(reasoning_content="me.")),
    ChatDelta(0, Delta(content="I ")),
    ChatDelta(0, Delta(content="look.")),
    ChatDelta(0, Delta(tool_calls=[call(0, '{"a"', "f")])),
    ChatDelta(0, Delta(tool_calls=[call(0, ": 1}"), call(1, "{}", "g")])),
    ChatDelta(0, Delta(tool_calls=[call(2, '{"cut', "h")])),
    ChatDelta(0, Delta(), None, "tool_calls"),
]


async def chunks(deltas, usage=USAGE):
    for number, delta in enumerate(deltas):
        yield ChatChunk(
            id="x",
            created=1,
            model="tiny",
            system_fingerprint="",
            choices=[delta],
            usage=Usage(10, number, 10 + number),
        )
    yield ChatChunk(id="x", created=1, model="tiny", system_fingerprint="", choices=[], usage=usage)


async def test_the_message():
    message = await MessageWriter("msg_1", "tiny", 7).message(chunks(DELTAS))
    assert message.content == [
        Thought("Let me.", SIGNATURE),
        Text("I look."),
        ToolUse("call_0", "f", {"a": 1}),
        ToolUse("call_1", "g", {}),
        ToolUse("call_2", "h", {}),
    ]
    assert message.stop_reason == "tool_use"
    assert message.usage == answers.Usage(6, 7, 4)


async def test_the_events():
    events = [each async for each in MessageWriter("msg_1", "tiny", 7).events(chunks(DELTAS))]
    assert events[0].message.usage == answers.Usage(10, 0)
    starts = [each for each in events if isinstance(each, BlockStart)]
    assert [each.content_block for each in starts] == [
        Thought("", ""),
        Text(""),
        *[ToolUse(f"call_{number}", name, {}) for number, name in enumerate("fgh")],
    ]
    stops = [each.index for each in events if isinstance(each, BlockStop)]
    assert [each.index for each in starts] == stops == [0, 1, 2, 3, 4]
    deltas = [each.delta for each in events if isinstance(each, answers.BlockChange)]
    assert deltas[:3] == [
        answers.ThinkingDelta("Let "),
        answers.ThinkingDelta("me."),
        answers.SignatureDelta(SIGNATURE),
    ]
    parts = [each.partial_json for each in deltas if isinstance(each, answers.InputJsonDelta)]
    assert parts == ['{"a"', ": 1}", "{}", '{"cut']
    assert events[-2].delta == answers.Ending("tool_use")
    assert events[-2].usage == answers.Usage(6, 7, 4)


async def test_an_empty_answer():
    message = await MessageWriter("msg_1", "tiny", 7).message(
        chunks([ChatDelta(0, Delta(content=""), None, "stop")])
    )
    assert (message.content, message.stop_reason) == ([], "end_turn")


async def test_why_a_long_answer_ended():
    cut = [ChatDelta(0, Delta(content="x"), None, "length")]
    for limit, reason in ((7, "max_tokens"), (8, "model_context_window_exceeded")):
        message = await MessageWriter("msg_1", "tiny", limit).message(chunks(cut))
        assert message.stop_reason == reason
