"""Answers that follow a grammar, on real processes: each valid, also after the loss of a shard."""

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from sps2.common.client import AsyncClient

from .conftest import Launch, Running
from .test_cluster import released, said

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "sizes": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "color": {"enum": ["red", "green"]},
    },
    "required": ["name", "sizes", "color"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
ASK = [{"role": "user", "content": "a thing"}]
ROOM = {"max_tokens": 400, "temperature": 1.0}


@pytest.fixture(scope="module")
def cluster(launch: Launch) -> Iterator[Running]:
    with launch("llama3", "tcp") as running:
        yield running


async def test_random_answers_follow_the_schema(cluster: Running) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"temperature": 0},
        {"top_p": 0.5, "frequency_penalty": 1.0},
        {"min_tokens": 12, "logit_bias": {"40": 5.0}},
    ]
    async with AsyncClient(cluster.bus) as client:
        chats = await asyncio.gather(
            *(
                client.chat(ASK, **(ROOM | {"seed": seed, "response_format": FORMAT} | more))
                for seed, more in enumerate(options * 2)
            )
        )
    for chat in chats:
        (choice,) = chat.choices
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


async def test_every_choice_follows_it_beside_free_text(cluster: Running) -> None:
    async with AsyncClient(cluster.bus) as client:
        free, guided, listed = await asyncio.gather(
            client.complete("x", max_tokens=40, ignore_eos=True, seed=1),
            client.complete("x", **ROOM, structured_outputs={"regex": "[0-9]{3}-[a-f]+"}, n=3),
            client.complete("x", **ROOM, structured_outputs={"choice": ["yes", "no"]}, logprobs=1),
        )
        alone = await client.complete("x", max_tokens=40, ignore_eos=True, seed=1)
    assert free.choices[0].text == alone.choices[0].text
    for choice in guided.choices:
        assert re.fullmatch("[0-9]{3}-[a-f]+", choice.text), choice
    assert listed.choices[0].text in ("yes", "no")
    assert listed.choices[0].finish_reason == "stop"


async def test_a_long_prompt_on_several_shards_begins_in_the_grammar(cluster: Running) -> None:
    async with AsyncClient(cluster.bus) as client:
        answer = await client.complete(
            [3] * 100, **ROOM, structured_outputs={"json": SCHEMA}, sps2={"sp_degree": 2}, seed=5
        )
    jsonschema.validate(json.loads(answer.choices[0].text), SCHEMA)
    assert answer.usage.sps2.sp_degree == 2


@pytest.fixture(scope="module")
def doomed(launch: Launch) -> Iterator[Running]:
    with launch("llama3", "tcp", mixed=3) as running:
        yield running


async def test_an_answer_goes_on_in_its_grammar_after_a_loss(doomed: Running) -> None:
    words = {"type": "array", "items": {"type": "string", "maxLength": 5}, "minItems": 40}
    outputs = {"json": words | {"maxItems": 50}, "disable_any_whitespace": True}
    wanted = {"temperature": 1.0, "seed": 7, "logprobs": 0, "max_tokens": 500}
    wanted |= {"structured_outputs": outputs}
    async with AsyncClient(doomed.bus) as client:
        whole = await client.complete("x", cache_salt="calm", **wanted)
        await released(client)
        stream = client.complete_stream("x", cache_salt="lost", **wanted)
        tokens = said(await anext(stream))
        status = await client.status()
        (request,) = status.requests
        (pid,) = (shard.pid for shard in status.shards if shard.id == request.owner)
        os.kill(pid, signal.SIGKILL)
        async for chunk in stream:
            tokens += said(chunk) if chunk.choices else []
        assert chunk.usage.sps2.epoch > 0
    assert tokens == said(whole)
    jsonschema.validate(json.loads(whole.choices[0].text), words)
