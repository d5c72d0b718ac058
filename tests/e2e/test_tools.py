"""Calls that must be made, on real processes: a random model calls functions by their schemas."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from sps2.common import api
from sps2.common.client import AsyncClient

from .conftest import Launch, Running

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
ASK: Any = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def cluster(launch: Launch) -> Iterator[Running]:
    with launch("long", "tcp") as running:
        yield running


async def test_a_random_model_calls_what_it_must(cluster: Running) -> None:
    async with AsyncClient(cluster.bus) as client:
        chats = await asyncio.gather(
            *(
                client.chat(
                    ASK,
                    tools=[WEATHER],
                    tool_choice="required",
                    parallel_tool_calls=False,
                    max_tokens=300,
                    seed=seed,
                )
                for seed in range(4)
            )
        )
        for chat in chats:
            (choice,) = chat.choices
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content is None
            (call,) = choice.message.tool_calls
            assert call.function.name == "weather"
            jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
        result = api.Message("tool", "Rain.", tool_call_id=call.id)
        again = await client.chat(
            [*ASK, choice.message, result], tools=[WEATHER], tool_choice="none", max_tokens=4
        )
        assert again.choices[0].message.content is not None
