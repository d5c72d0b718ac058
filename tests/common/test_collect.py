import pytest

from sps2.common.api import (
    ChatChunk,
    ChatDelta,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    Delta,
    Usage,
)
from sps2.common.collect import collect_chat, collect_completion
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
