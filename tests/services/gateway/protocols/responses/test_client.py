"""The official OpenAI client against `/v1/responses`."""

import asyncio
import json

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from sps2.common.errors import Internal, Refused

from .....waiting import until

PATH = "/v1/responses"


@pytest.fixture
async def client(door):
    async with AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def http(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        yield http


async def test_answers(client, door):
    answer = await client.responses.create(
        model="tiny", input="Hi", instructions="Be brief.", metadata={"run": "7"}
    )
    assert answer.output_text == "Hello, world."
    assert answer.id.startswith("resp_")
    assert (answer.status, answer.object, answer.model) == ("completed", "response", "tiny")
    assert answer.metadata == {"run": "7"}
    assert answer.error is None
    assert answer.incomplete_details is None
    (message,) = answer.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    prompt = len("system:Be brief.\nuser:Hi\nassistant:")
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (
        prompt,
        14,
        prompt + 14,
    )
    assert usage.input_tokens_details.cached_tokens == 0


async def test_streams(client):
    stream = await client.responses.create(model="tiny", input="Hi", stream=True)
    events = [event async for event in stream]
    kinds = [each.type for each in events]
    begun, alive = kinds[:2], "response.in_progress"  # again in a pause
    kinds = [*begun, *(each for each in kinds[2:] if each != alive)]
    assert kinds[:4] == [
        "response.created",
        alive,
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [each.sequence_number for each in events] == [*range(len(events))]
    deltas = [each.delta for each in events if each.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-4].text == "Hello, world."
    whole = events[-1].response
    assert whole.output_text == "Hello, world."
    assert whole.usage.output_tokens == 14
    assert events[0].response.status == "in_progress"


async def test_the_clients_own_accumulator_agrees(client):
    async with client.responses.stream(model="tiny", input="Hi") as stream:
        async for _ in stream:
            pass
        whole = await stream.get_final_response()
    assert whole.output_text == "Hello, world."


async def test_events_have_the_names_of_their_types(http):
    answer = await http.post(PATH, json={"input": "Hi", "stream": True})
    lines = answer.text.splitlines()
    names = [each.removeprefix("event: ") for each in lines if each.startswith("event: ")]
    assert names == [json.loads(each[6:])["type"] for each in lines if each.startswith("data: ")]
    assert "[DONE]" not in answer.text


async def test_shows_the_whole_conversation(client, door):
    door.play.answer = lambda prompt: prompt
    answer = await client.responses.create(
        model="tiny",
        instructions="I",
        input=[
            {"role": "developer", "content": "J"},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "b", "annotations": []}],
            },
            {"role": "user", "content": "c"},
        ],
    )
    assert answer.output_text == "system:I\nJ\nuser:a\nassistant:b\nuser:c\nassistant:"


async def test_a_cut_answer_is_incomplete(client, door):
    answer = await client.responses.create(
        model="tiny", input="Hi", max_output_tokens=4, temperature=0, top_p=0.5
    )
    assert (answer.status, answer.output_text) == ("incomplete", "Hell")
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"
    assert door.play.submitted[0].sampling.temperature == 0
    stream = await client.responses.create(
        model="tiny", input="Hi", max_output_tokens=4, stream=True
    )
    events = [event async for event in stream]
    assert events[-1].type == "response.incomplete"


async def test_log_probabilities(client):
    include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    asked = {"model": "tiny", "input": "Hi", "max_output_tokens": 3, "include": include}
    answer = await client.responses.create(**asked, top_logprobs=2)
    listed = answer.output[0].content[0].logprobs
    assert [each.token for each in listed] == ["H", "e", "l"]
    assert [each.token for each in listed[0].top_logprobs] == ["H", "?"]
    stream = await client.responses.create(**asked, stream=True)
    deltas = [event async for event in stream if event.type == "response.output_text.delta"]
    assert [each.logprobs[0].token for each in deltas] == ["H", "e", "l"]


async def test_goes_on_from_a_stored_response(client, door):
    door.play.answer = lambda prompt: str(prompt.count("\n"))
    first = await client.responses.create(model="tiny", input="one", instructions="I")
    door.play.answer = lambda prompt: prompt
    second = await client.responses.create(model="tiny", input="two", previous_response_id=first.id)
    assert second.output_text == "user:one\nassistant:2\nuser:two\nassistant:"
    listed = await client.responses.input_items.list(second.id, order="asc")
    assert [each.content[0].text for each in listed.data] == ["one", "2", "two"]
    page = await client.responses.input_items.list(second.id, limit=1, after=listed.data[2].id)
    assert [each.id for each in page.data] == [listed.data[1].id]
    assert page.has_more

    door.play.answer = lambda prompt: prompt
    referring = await client.responses.create(
        model="tiny",
        input=[
            {"type": "item_reference", "id": first.output[0].id},
            {"role": "user", "content": "x"},
        ],
    )
    assert referring.output_text == "assistant:2\nuser:x\nassistant:"


async def test_shows_and_deletes_stored_responses(client):
    kept = await client.responses.create(model="tiny", input="Hi")
    shown = await client.responses.retrieve(kept.id)
    assert shown.to_dict() == kept.to_dict()
    async with client.responses.stream(model="tiny", input="Hi") as stream:
        streamed = await stream.get_final_response()
    assert (await client.responses.retrieve(streamed.id)).output_text == "Hello, world."
    loose = await client.responses.create(model="tiny", input="Hi", store=False)
    assert loose.to_dict()["store"] is False
    await client.responses.delete(kept.id)
    for gone in (kept.id, loose.id):
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(gone)
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="tiny", input="x", previous_response_id=gone)
        with pytest.raises(openai.NotFoundError):
            await client.responses.delete(gone)
    with pytest.raises(openai.BadRequestError):
        await client.responses.cancel(streamed.id)


@pytest.mark.parametrize("limit", ["0", "101", "x", "1" * 5000, "\N{SUPERSCRIPT TWO}"])
async def test_a_page_has_1_to_100_items(client, http, limit):
    kept = await client.responses.create(model="tiny", input="Hi")
    answer = await http.get(f"{PATH}/{kept.id}/input_items", params={"limit": limit})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "limit"


async def test_a_background_response_goes_on_without_its_client(client, door):
    door.play.gates["token 5"] = asyncio.Event()
    begun = await client.responses.create(model="tiny", input="Hi", background=True)
    assert (begun.status, begun.background, begun.output) == ("in_progress", True, [])
    assert (await client.responses.retrieve(begun.id)).status == "in_progress"
    with pytest.raises(openai.BadRequestError, match="in_progress"):
        await client.responses.create(model="tiny", input="x", previous_response_id=begun.id)
    door.play.gates["token 5"].set()
    while (shown := await client.responses.retrieve(begun.id)).status == "in_progress":
        await asyncio.sleep(0.01)
    assert (shown.status, shown.output_text) == ("completed", "Hello, world.")


async def test_a_background_response_can_be_cancelled(client, door):
    door.play.gates["token 5"] = asyncio.Event()
    begun = await client.responses.create(model="tiny", input="Hi", background=True)
    await until(lambda: door.play.follows == 1)
    cancelled = await client.responses.cancel(begun.id)
    assert cancelled.status == "cancelled"
    await until(lambda: door.play.cancelled)
    assert (await client.responses.cancel(begun.id)).status == "cancelled"


async def test_a_background_response_can_fail(client, door):
    door.play.fail["token 5"] = Internal("broken")
    begun = await client.responses.create(model="tiny", input="Hi", background=True)
    while (shown := await client.responses.retrieve(begun.id)).status == "in_progress":
        await asyncio.sleep(0.01)
    assert (shown.status, shown.error.code) == ("failed", "internal_error")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="tiny", input="x" * 300, background=True)
    assert caught.value.code == "context_length_exceeded"
    for fields in ({"stream": True}, {"store": False}):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="tiny", input="x", background=True, **fields)
        assert [caught.value.param] == [*fields]


async def test_raises_the_clients_errors(client, door):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="tiny", input="Hi", temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="`max_output_tokens` is 500") as caught:
        await client.responses.create(model="tiny", input="Hi", max_output_tokens=500)
    assert caught.value.param == "max_output_tokens"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="tiny", input="x" * 300)
    assert caught.value.param == "input"
    with pytest.raises(openai.NotFoundError):
        await client.responses.create(model="gpt-5", input="Hi")
    door.play.fail["queue"] = Refused("full", 2.5)
    with pytest.raises(openai.RateLimitError):
        await client.responses.create(model="tiny", input="Hi")
    with pytest.raises(openai.RateLimitError):
        await client.responses.create(model="tiny", input="Hi", stream=True)


async def test_an_error_inside_a_stream_fails_the_response(client, door):
    door.play.fail["token 5"] = Internal("broken")
    stream = await client.responses.create(model="tiny", input="Hi", stream=True)
    events = [event async for event in stream]
    assert [each.sequence_number for each in events] == [*range(len(events))]
    assert events[-1].type == "response.failed"
    failed = events[-1].response
    assert (failed.status, failed.error.code) == ("failed", "internal_error")
    assert failed.output[0].content[0].text == "Hello"
    assert (await client.responses.retrieve(failed.id)).status == "failed"


async def test_a_silent_stream_has_signs_of_life(client, door):
    door.play.gates["prefill"] = asyncio.Event()
    stream = await client.responses.create(model="tiny", input="Hi", stream=True)
    events = [await anext(stream) for _ in range(4)]
    door.play.gates["prefill"].set()
    events += [event async for event in stream]
    kinds = [each.type for each in events]
    assert kinds[:4] == ["response.created", *["response.in_progress"] * 3]
    assert kinds.count("response.created") == 1
    assert [each.sequence_number for each in events] == [*range(len(events))]
    assert events[-1].response.output_text == "Hello, world."


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels(http, door, stream):
    door.play.gates["token 3"] = asyncio.Event()
    request = asyncio.create_task(http.post(PATH, json={"input": "Hi", "stream": stream}))
    await until(lambda: door.play.follows == 1)
    request.cancel()
    await asyncio.wait({request})
    await until(lambda: len(door.play.cancelled) == 1)
    assert not door.play.finished
