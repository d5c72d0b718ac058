"""Real processes: an answer that comes back in a conversation is found in the cache, to the token.

The model is random, so that its answers are almost never tokenised to what was sampled.
"""

from collections.abc import Iterator

import pytest

from sps2.common.api import Chat
from sps2.common.client import Client
from sps2.common.text.tokens import Tokenizer

from .conftest import Launch, Running

PAGE = 32
BANNED = {"0": -100.0, "1": -100.0, "2": -100.0}
LONG = {"role": "user", "content": "Redistribution and use in source and binary forms. " * 6}
QUESTION = {"role": "user", "content": "And then?"}


@pytest.fixture(scope="module")
def cluster(launch: Launch) -> Iterator[Running]:
    with launch("smollm2", "tcp") as running:
        yield running


def ask(client: Client, messages: list[dict[str, str]], **changes: object) -> Chat:
    options = {
        "max_tokens": 60,
        "seed": 5,
        "logit_bias": BANNED,
        "return_token_ids": True,
        "cache_salt": "turns",
    }
    return client.chat(messages, **options | changes)  # type: ignore[arg-type]


def said(answer: Chat) -> dict[str, str]:
    return {"role": "assistant", "content": answer.choices[0].message.content or ""}


def test_each_turn_finds_all_turns_before_it(cluster: Running) -> None:
    tokenizer = Tokenizer(cluster.folder)
    with Client(cluster.bus) as client:
        messages = [LONG]
        before: list[int] = []
        for _ in range(3):
            answer = ask(client, messages)
            prompt, sampled = answer.prompt_token_ids, answer.choices[0].token_ids
            assert isinstance(prompt, list)
            assert isinstance(sampled, list)
            assert len(sampled) == 60
            text = said(answer)["content"]
            assert tokenizer.encode(text, add_special_tokens=False) != sampled
            # the last token of an answer has no KV: nothing was computed after it
            found = answer.usage.prompt_tokens_details.cached_tokens
            assert found == max(0, len(before) - 1) // PAGE * PAGE
            assert prompt[: len(before)] == before
            before = prompt + sampled
            messages = [*messages, said(answer), QUESTION]

        other = ask(client, messages[:3], cache_salt="others", max_tokens=1)
        assert isinstance(other.prompt_token_ids, list)
        assert other.prompt_token_ids != before[: len(other.prompt_token_ids)]
        assert other.usage.prompt_tokens_details.cached_tokens == 0
