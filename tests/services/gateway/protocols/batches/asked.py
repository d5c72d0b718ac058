"""What tests of files and batches ask OpenAI's client."""

import asyncio
import json

from openai import AsyncOpenAI

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDED = ("completed", "failed", "cancelled", "expired")


def client_of(door, key="none"):
    return AsyncOpenAI(base_url=f"{door.url}/v1", api_key=key, max_retries=0)


def lines(*bodies, url=COMPLETIONS, **more):
    made = [
        {"custom_id": f"r{number}", "method": "POST", "url": url, "body": body} | more
        for number, body in enumerate(bodies)
    ]
    return "\n".join(map(json.dumps, made)).encode()


async def begun(client, content, endpoint=COMPLETIONS, **more):
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )


async def ended(client, batch):
    while batch.status not in ENDED:
        await asyncio.sleep(0.01)
        batch = await client.batches.retrieve(batch.id)
    return batch


async def results(client, name):
    text = (await client.files.content(name)).text
    return {each["custom_id"]: each for each in map(json.loads, text.splitlines())}
