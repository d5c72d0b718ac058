"""Texts as vectors, by the official OpenAI client."""

import openai
import pytest
from openai import AsyncOpenAI

from sps2.services.gateway.embeddings import vector


@pytest.fixture
async def client(door):
    async with AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("form", ["float", "base64"])
async def test_a_text_has_a_vector_of_length_one(client, door, form):
    made = await client.embeddings.create(model="tiny", input="abc", encoding_format=form)
    (one,) = made.data
    if form == "base64":
        assert one.embedding == "mpkZP83MTD8="
    else:
        assert one.embedding == pytest.approx([0.6, 0.8])
    assert (one.index, one.object, made.object) == (0, "embedding", "list")
    assert made.model == "tiny"
    assert (made.usage.prompt_tokens, made.usage.total_tokens) == (3, 3)
    assert made.usage.model_extra["sps2"]["sp_degree"] == 2
    (submitted,) = door.play.submitted
    assert submitted.sampling.pooling == "last"
    assert submitted.sampling.max_tokens == 1
    assert submitted.sampling.prompt_logprobs is None


async def test_the_client_decodes_what_it_asks_for(client):
    (one,) = (await client.embeddings.create(model="tiny", input="abc")).data
    assert one.embedding == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(
    ("given", "tokens"),
    [(["a", "bc"], [1, 2]), ([97, 98, 99], [3]), ([[97], [98, 99]], [1, 2]), ("\u00e9", [2])],
)
async def test_inputs_of_every_kind(client, door, given, tokens):
    made = await client.embeddings.create(model="tiny", input=given)
    assert [each.index for each in made.data] == [*range(len(tokens))]
    assert sorted(len(each.prompt) // 4 for each in door.play.submitted) == tokens
    assert made.usage.prompt_tokens == sum(tokens)


async def test_sps2s_own_parameters(client, door):
    own = {"pooling": "mean", "sp_degree": 3, "priority": -2}
    made = await client.embeddings.create(
        model="tiny", input="abc", extra_body={"sps2": own, "cache_salt": "s"}
    )
    (submitted,) = door.play.submitted
    assert submitted.sampling.pooling == "mean"
    assert (submitted.options.sp_degree, submitted.priority) == (3, -2)
    assert submitted.cache_salt == "s"
    assert made.usage.model_extra["sps2"]["sp_degree"] == 3


@pytest.mark.parametrize(
    ("given", "truncated", "tokens"), [("abcd", 2, b"cd"), ("x" * 300, -1, b"x" * 200)]
)
async def test_inputs_are_cut_to_their_last_tokens(client, door, given, truncated, tokens):
    await client.embeddings.create(
        model="tiny", input=given, extra_body={"truncate_prompt_tokens": truncated}
    )
    (submitted,) = door.play.submitted
    assert [*memoryview(submitted.prompt).cast("I")] == [*tokens]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [999]}, "input"),
        ({"input": "x" * 300}, "input"),
        ({"input": ["x"] * 600}, "input"),
        ({"dimensions": 8}, "dimensions"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"sps2": {"pooling": "max"}}, "sps2.pooling"),
        ({"sps2": {"progress": True}}, "sps2.progress"),
        ({"colour": 1}, "colour"),
    ],
)
async def test_what_is_wrong_is_named(client, door, more, field):
    given = more.get("input", "x")
    more = {name: value for name, value in more.items() if name != "input"}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model="tiny", input=given, extra_body=more)
    assert refused.value.param == field
    assert "`prompt`" not in refused.value.message
    assert not door.play.submitted


async def test_a_completion_has_no_pooling(client, door):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(
            model="tiny", prompt="x", extra_body={"sps2": {"pooling": "mean"}}
        )
    assert refused.value.param == "sps2.pooling"


def test_parts_are_added_and_normalised():
    parts = [bytes.fromhex("00004040") * 2, bytes.fromhex("0000803f") * 2]  # 3 and 1
    assert vector(parts).tolist() == pytest.approx([0.5**0.5] * 2)
    assert vector([bytes(8)]).tolist() == [0.0, 0.0]
