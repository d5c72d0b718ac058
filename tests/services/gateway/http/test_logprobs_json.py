"""Log-probabilities of plain answers, which are JSON from the moment they come."""

import gc

import msgspec

from sps2.common.api import (
    ChatChunk,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    Delta,
    TopLogprob,
    Usage,
)
from sps2.common.api.collect import collect_chat, collect_completion
from sps2.services.gateway.http.logprobs_json import Written

HEAD = {"id": "x", "created": 1, "model": "m", "system_fingerprint": "f"}
USAGE = Usage(1, 2, 3)
TOKENS = 300


def entry(text: str) -> ChatLogprobs:
    top = [TopLogprob(f"{text}{rank}", -float(rank), [1, 2]) for rank in range(20)]
    return ChatLogprobs([ChatLogprob(text, -0.5, [3], top)])


async def chat():
    for index in range(TOKENS):
        for choice in (0, 1):
            yield ChatChunk(
                **HEAD, choices=[ChatDelta(choice, Delta(content="a"), entry(f'"{index}'))]
            )
    yield ChatChunk(**HEAD, choices=[ChatDelta(2, Delta(content="b"), None, "stop")])
    yield ChatChunk(**HEAD, choices=[], usage=USAGE)


async def completion():
    for index in range(TOKENS):
        for choice in (0, 1):
            listed = CompletionLogprobs(["a"], [None], [{f"b{index}": -1.0}], [index])
            yield CompletionChunk(**HEAD, choices=[CompletionChoice(choice, "a", listed)])
    nothing = CompletionLogprobs([], [], [], [])
    yield CompletionChunk(**HEAD, choices=[CompletionChoice(2, "", nothing, "stop")])
    yield CompletionChunk(**HEAD, choices=[], usage=USAGE)


async def test_says_what_the_objects_would() -> None:
    for chunks, collect in ((chat, collect_chat), (completion, collect_completion)):
        written = msgspec.json.encode(await collect(chunks(), Written))
        assert msgspec.json.decode(written) == msgspec.json.decode(
            msgspec.json.encode(await collect(chunks()))
        )


async def test_keeps_no_objects_of_tokens() -> None:
    gc.collect()
    before = len(gc.get_objects())
    answer = await collect_chat(chat(), Written)
    assert len(answer.choices) == 3
    assert len(gc.get_objects()) - before < TOKENS  # not 40 of each token
