"""The official OpenAI client against the gateway."""

import httpx
import openai
import pytest
from openai import AsyncOpenAI


@pytest.fixture
async def client(door):
    async with AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_lists_the_model(client):
    models = await client.models.list()
    assert [each.id for each in models.data] == ["tiny"]
    assert (await client.models.retrieve("tiny")).id == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


async def test_completes(client, door):
    answer = await client.completions.create(model="tiny", prompt="abc", max_tokens=50)
    assert answer.choices[0].text == "Hello, world."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 14  # the end is a token too
    assert answer.usage.total_tokens == 17
    assert answer.id.startswith("cmpl-")
    assert answer.system_fingerprint.startswith("fp_")


async def test_tells_what_it_took(client):
    answer = await client.completions.create(model="tiny", prompt="abcd", max_tokens=50)
    took = answer.usage.model_extra["sps2"]
    assert took.pop("ttft_ms") > 0
    assert took == {
        "sp_degree": 2,
        "chunks": 1,
        "attention": "exact",
        "method": "gather",
        "prefill_bytes": 1100,
        "decode_bytes": 42,
        "kv_bytes_exact": 4 * 96,
        "kept_fraction": 1.0,
        "lost_mass": 0.0,
        "cached_tokens": 0,
        "exchange_bytes": 100,
        "exchange_bytes_by_purpose": {"kv": 100},
        "predicted_exchange_bytes": 90,
        "prefill_s": 0.01,
        "compute_s": 3.0,
        "attention_s": 1.5,
        "exchange_s": 2.0,
        "hidden_fraction": 0.5,
        "deposit_bytes": 1000,
        "saved_bytes": 520,
        "q_bytes": 30,
        "state_bytes": 12,
        "migration_pays_after": None,
        "owner": "decode-1",
        "placements": [
            {"shard": "decode-0", "span": [0, 2]},
            {"shard": "decode-1", "span": [2, 4]},
        ],
        "epoch": 1,
    }


async def test_streams_with_usage(client):
    stream = await client.completions.create(
        model="tiny", prompt="abc", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "Hello, world."
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 14
    assert len(chunks) > 10


async def test_streams_without_usage(client):
    stream = await client.completions.create(model="tiny", prompt="abc", stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_chats(client, door):
    door.play.answer = lambda prompt: prompt
    answer = await client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        ],
    )
    assert answer.choices[0].message.content == "system:Be brief.\nuser:Hi\nassistant:"
    assert answer.choices[0].message.role == "assistant"
    assert answer.id.startswith("chatcmpl-")


async def test_streams_a_chat(client):
    stream = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, world."
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is None


async def test_logprobs_of_a_chat(client):
    answer = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Hi"}],
        logprobs=True,
        top_logprobs=2,
        max_completion_tokens=3,
    )
    content = answer.choices[0].logprobs.content
    assert [each.token for each in content] == ["H", "e", "l"]
    assert content[0].bytes == [72]
    assert [(each.token, each.logprob) for each in content[0].top_logprobs] == [
        ("H", -0.25),
        ("?", -1.5),
    ]
    assert answer.choices[0].finish_reason == "length"


async def test_raises_the_clients_errors(client):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="tiny", prompt="abc", temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        await client.completions.create(model="gpt-4", prompt="abc")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="tiny", messages=[])
    assert caught.value.param == "messages"


async def test_an_error_inside_a_stream_is_raised(client, door):
    from sps2.common.errors import Internal

    door.play.fail["token 5"] = Internal("broken")
    stream = await client.completions.create(model="tiny", prompt="abc", stream=True)
    with pytest.raises(openai.APIError) as caught:
        async for _ in stream:
            pass
    assert caught.value.code == "internal_error"


async def test_several_choices_and_prompts(client, door):
    door.play.answer = lambda prompt: f"<{prompt}>"
    answer = await client.completions.create(
        model="tiny", prompt=["a", "bb"], n=2, seed=5, max_tokens=50
    )
    assert [each.text for each in answer.choices] == ["<a>", "<a>", "<bb>", "<bb>"]
    assert [each.index for each in answer.choices] == [0, 1, 2, 3]
    assert [each.sampling.seed for each in door.play.submitted] == [5, 6, 5, 6]
    assert len({each.request for each in door.play.submitted}) == 4
    assert max(len(each.request) for each in door.play.submitted) <= 16
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.model_extra["sps2"]["prefill_bytes"] == 4400


async def test_keeps_the_request_id(client, door):
    async with httpx.AsyncClient(base_url=door.url) as http:
        given = await http.get("/v1/models", headers={"x-request-id": "mine-1"})
        odd = await http.get("/v1/models", headers={"x-request-id": "a b"})
        lost = await http.get("/nowhere")
    assert given.headers["x-request-id"] == "mine-1"
    assert len(odd.headers["x-request-id"]) == 12
    assert lost.headers["x-request-id"]
