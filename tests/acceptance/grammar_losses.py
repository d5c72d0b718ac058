"""Streams of structured answers whose shard is killed at a random token: all of them are valid.

    python tests/acceptance/grammar_losses.py [ROUNDS] [FIRST_SEED]

Two mixed shards serve the real model. In every round a chat that must follow a schema is streamed,
and a shard, that of the answer or the other, is killed with SIGKILL at a random token; then the
whole answer is validated. Exits with 1 if one is invalid, or ends otherwise than its grammar does.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from typing import Any, NamedTuple

import jsonschema

from sps2.cli import ports
from sps2.cli.local import running_cluster
from sps2.common import config
from sps2.common.client import AsyncClient
from sps2.common.errors import ServiceError

MODEL = "smollm2-135m"
MOST_TOKENS = 200
"""A shard is killed before this token; many answers end earlier, without a loss."""
OTHERS = 0.3
"""Share of rounds in which the other shard is killed."""
TEXT = {"type": "string", "maxLength": 30}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "words": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 12},
        "size": {"type": "number"},
        "color": {"enum": ["red", "green", "bluish grey"]},
        "inner": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}, "note": TEXT},
            "required": ["on", "note"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "words", "size", "color", "inner"],
    "additionalProperties": False,
}
WANTED: dict[str, Any] = {
    "temperature": 1.0,
    "max_tokens": 700,
    "response_format": {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}},
}


class Round(NamedTuple):
    """wrong: what is wrong with the answer, empty if nothing is. killed: what was killed, when."""

    wrong: str
    killed: str
    text: str


async def ready(client: AsyncClient) -> None:
    while True:
        try:
            seen = await client.status()
            if seen.ready and not seen.missing:
                return
        except ServiceError:
            pass
        await asyncio.sleep(0.1)


async def kill(client: AsyncClient, other: bool) -> str:
    """Kill the shard of the running answer, or the other one; returns its name, if there is any."""
    seen = await client.status()
    for request in seen.requests:
        for shard in seen.shards:
            if (shard.id == request.owner) is not other and shard.pid:
                os.kill(shard.pid, signal.SIGKILL)
                return shard.id
    return ""


async def answer(address: str, seed: int) -> Round:
    draw = random.Random(seed)
    at, other = draw.randrange(MOST_TOKENS), draw.random() < OTHERS
    ask = f"Describe thing number {seed} as JSON."
    text, count, killed, finish = "", 0, "", None
    async with AsyncClient(address, timeout_s=300) as client:
        await ready(client)
        try:
            async for chunk in client.chat_stream(ask, seed=seed, **WANTED):
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    count += bool(choice.delta.content)
                    finish = choice.finish_reason or finish
                if (
                    count >= at
                    and not killed
                    and not finish
                    and (name := await kill(client, other))
                ):
                    killed = f"{name} ({'other' if other else 'owner'}) at {count}"
        except ServiceError as error:
            return Round(f"{type(error).__name__}: {error}", killed, text)
    if finish != "stop":
        return Round(f"finish_reason {finish}", killed, text)
    try:
        jsonschema.validate(json.loads(text), SCHEMA)
    except (ValueError, jsonschema.ValidationError) as error:
        return Round(f"invalid: {str(error)[:200]}", killed, text)
    return Round("", killed, text)


def main(rounds: int, first: int) -> int:
    bad = losses = 0
    port = ports.free_base()
    with running_cluster(name=f"grammar-losses-{port}", port=port, model=MODEL, mixed=2):
        address = config.load(port=port).gateway_address
        for seed in range(first, first + rounds):
            since_s = time.monotonic()
            found = asyncio.run(answer(address, seed))
            bad, losses = bad + bool(found.wrong), losses + bool(found.killed)
            said = f"{found.wrong or 'valid'}; killed: {found.killed or 'none'}"
            print(f"{seed}: {said}; {time.monotonic() - since_s:.1f} s", flush=True)
            if found.wrong:
                print(f"    {found.text!r}", flush=True)
    print(f"{rounds - bad} of {rounds} answers are valid, after {losses} losses")
    return 1 if bad or not losses else 0


if __name__ == "__main__":
    rounds, first, *_ = [*map(int, sys.argv[1:]), *(20, 0)[len(sys.argv) - 1 :]]
    sys.exit(main(rounds, first))
