import pytest

from sps2.common.api import (
    Answer,
    ChatChunk,
    ChatDelta,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    Delta,
    FunctionCall,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from sps2.common.api.collect import collect_chat, collect_completion
from sps2.common.errors import Internal

HEAD = {"id": "x", "created": 1, "model": "m", "system_fingerprint": "f"}


async def stream(*chunks):
    for chunk in chunks:
        yield chunk


async def test_folds_choices_by_index():
    one = CompletionLogprobs(["a"], [-1.0], [None], [0])
    two = CompletionLogprobs(["b"], [-2.0], [{"b": -2.0}], [1])
    answer = await collect_completion(
        stream(
            CompletionChunk(**HEAD, choices=[CompletionChoice(1, "x")]),
            CompletionChunk(**HEAD, choices=[CompletionChoice(0, "a", one)]),
            CompletionChunk(**HEAD, choices=[CompletionChoice(0, "b", two, "stop")]),
            CompletionChunk(**HEAD, choices=[CompletionChoice(1, "y", None, "length")]),
            CompletionChunk(**HEAD, choices=[], usage=Usage(1, 2, 3)),
        )
    )
    both = CompletionLogprobs(["a", "b"], [-1.0, -2.0], [None, {"b": -2.0}], [0, 1])
    assert answer.choices == [
        CompletionChoice(0, "ab", both, "stop"),
        CompletionChoice(1, "xy", None, "length"),
    ]
    assert answer.usage == Usage(1, 2, 3)


async def test_folds_thoughts_and_calls():
    def part(index, *call, **function):
        return ToolCallDelta(index, *call, function=FunctionDelta(**function))

    deltas = [
        Delta("assistant", ""),
        Delta(reasoning_content="h"),
        Delta(reasoning_content="m"),
        Delta(tool_calls=[part(0, "a", "function", name="f", arguments="")]),
        Delta(tool_calls=[part(0, arguments="{"), part(1, "b", "function", name="g")]),
        Delta(tool_calls=[part(1, arguments="{}"), part(0, arguments="}")]),
    ]
    answer = await collect_chat(
        stream(
            *(ChatChunk(**HEAD, choices=[ChatDelta(0, delta)]) for delta in deltas),
            ChatChunk(**HEAD, choices=[ChatDelta(0, Delta(), None, "tool_calls")]),
            ChatChunk(**HEAD, choices=[], usage=Usage(1, 2, 3)),
        )
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message == Answer(
        None,
        reasoning_content="hm",
        tool_calls=[
            ToolCall("a", FunctionCall("f", "{}")),
            ToolCall("b", FunctionCall("g", "{}")),
        ],
    )


async def test_folds_a_chat():
    answer = await collect_chat(
        stream(
            ChatChunk(**HEAD, choices=[ChatDelta(0, Delta("assistant", ""))]),
            ChatChunk(**HEAD, choices=[ChatDelta(0, Delta(content="a"))]),
            ChatChunk(**HEAD, choices=[ChatDelta(0, Delta(content="b"), None, "stop")]),
            ChatChunk(**HEAD, choices=[], usage=Usage(1, 2, 3)),
        )
    )
    assert answer.choices[0].message.content == "ab"
    assert answer.choices[0].finish_reason == "stop"


async def test_an_answer_without_usage_is_no_answer():
    with pytest.raises(Internal):
        await collect_completion(stream())


async def test_log_probabilities_of_a_long_answer_are_copied_once(monkeypatch):
    copied = 0

    def add(self, other):
        nonlocal copied
        copied += len(self.tokens) + len(other.tokens)
        return CompletionLogprobs(
            self.tokens + other.tokens,
            self.token_logprobs + other.token_logprobs,
            self.top_logprobs + other.top_logprobs,
            self.text_offset + other.text_offset,
        )

    monkeypatch.setattr(CompletionLogprobs, "__add__", add)
    one = CompletionLogprobs(["a"], [-1.0], [None], [0])
    pieces = [CompletionChunk(**HEAD, choices=[CompletionChoice(0, "a", one)]) for _ in range(500)]
    end = CompletionChunk(**HEAD, choices=[], usage=Usage(1, 2, 3))
    answer = await collect_completion(stream(*pieces, end))
    assert len(answer.choices[0].logprobs.tokens) == 500
    assert copied <= 1000
