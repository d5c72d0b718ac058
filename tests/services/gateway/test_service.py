"""The SDK against the gateway's bus."""

import asyncio

import pytest

from sps2.common.api import Extension, Message, TextPart
from sps2.common.client import Client
from sps2.common.errors import Cancelled, Invalid, Refused
from sps2.services.gateway.monitoring import cluster

from ...waiting import until

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client(door):
    async with door.client() as client:
        yield client


async def test_tokens_behind_a_stop_string_do_not_count(client):
    """They came at once with those before it."""
    answer = await client.complete("abc", temperature=0, stop="lo")
    assert answer.choices[0].text == "Hel"
    assert answer.usage.completion_tokens == len("Hello")


async def test_completes(client, door):
    answer = await client.complete("abc", temperature=0, sps2=Extension(sp_degree=4))
    assert answer.choices[0].text == "Hello, world."
    assert answer.usage.completion_tokens == 14
    assert answer.usage.sps2.sp_degree == 4
    assert answer.usage.sps2.placements[1].span.stop == 3
    assert door.play.submitted[0].sampling.temperature == 0
    assert door.play.submitted[0].options.sp_degree == 4


async def test_chats(client, door):
    door.play.answer = lambda prompt: prompt
    parts = [Message("system", [TextPart("Be"), TextPart("brief.")]), *HI]
    answer = await client.chat(parts, logprobs=True, top_logprobs=1)
    assert answer.choices[0].message.content == "system:Be\nbrief.\nuser:hi\nassistant:"
    assert answer.choices[0].logprobs.content[0].token == "s"


async def test_streams_until_it_is_left(client, door):
    door.play.gates["token 3"] = asyncio.Event()
    stream = client.complete_stream("abc", logit_bias={"5": 1.0})
    got = [(await anext(stream)).choices[0].text for _ in range(3)]
    assert got == ["H", "e", "l"]
    assert door.play.submitted[0].sampling.logit_bias == {5: 1.0}
    await stream.aclose()
    await until(lambda: door.play.cancelled)


async def test_tells_tokens_models_and_status(client, door, monkeypatch):
    monkeypatch.setattr(cluster, "DEADLINE_S", 60.0)  # on however busy a machine
    assert await client.tokenize("hé") == [104, 195, 169]
    assert await client.detokenize((104, 105)) == "hi"
    assert [each.id for each in await client.models()] == ["tiny"]
    status = await client.status()
    assert status.ready
    assert {each.service: each.state for each in status.services} == {
        "gateway": "ready",
        "scheduler": "ready",
        "kvdir": "ready",
        "decode-1": "ready",
        "decode-2": "lost",
    }
    assert status.leaked_pages == 2
    assert status.services[3].counters == {"kv_pages": 3.0}


async def test_status_names_a_lost_scheduler(client, door):
    await door.scheduler.close()
    status = await client.status()
    assert not status.ready
    assert "scheduler" in status.waiting_for
    assert {each.service: each.state for each in status.services}["scheduler"] == "lost"
    await until(door.parts.readiness.waiting_for)
    with pytest.raises(Refused, match="not ready"):
        await client.complete("abc")


async def test_cancels_by_id(client, door):
    door.play.gates["token 3"] = asyncio.Event()
    stream = client.chat_stream(HI)
    first = await anext(stream)
    await client.cancel(first.id)
    with pytest.raises(Cancelled, match=first.id):
        async for _ in stream:
            pass
    await until(lambda: door.play.cancelled)
    with pytest.raises(Invalid, match="no running request has id"):
        await client.cancel(first.id)


async def test_errors_keep_their_field_and_code(client):
    with pytest.raises(Invalid) as caught:
        await client.complete("x" * 300)
    assert (caught.value.field, caught.value.code) == ("prompt", "context_length_exceeded")
    with pytest.raises(Invalid) as caught:
        await client.complete("x", temperature=5)
    assert caught.value.field == "temperature"
    with pytest.raises(Invalid) as caught:
        await client.complete("x", model="other")
    assert caught.value.code == "model_not_found"


async def test_without_asyncio(door):
    def work():
        with Client(door.bus) as client:
            whole = client.complete("abc").choices[0].text
            texts = [each.delta.content for c in client.chat_stream(HI) for each in c.choices]
            return whole, "".join(text or "" for text in texts), client.status().model

    assert await asyncio.to_thread(work) == ("Hello, world.", "Hello, world.", "tiny")


async def test_shutting_down_tells_those_in_work(client, door):
    from sps2.common.errors import PeerLost

    door.play.gates["token 3"] = asyncio.Event()
    stream = client.complete_stream("abc")
    await anext(stream)
    door.parts.end(PeerLost("gateway", "the gateway is shutting down"))
    with pytest.raises(PeerLost, match="shutting down"):
        async for _ in stream:
            pass


async def test_an_answer_of_many_choices_never_fills_the_schedulers_queue(open_door):
    """A choice is submitted when one of those before it has left the queue."""
    async with open_door(max_requests=400) as door, door.client() as client:
        play = door.play
        play.gates["queue"] = asyncio.Event()
        asking = asyncio.create_task(client.complete(["abc"] * 400, max_tokens=1, temperature=0))
        await until(lambda: len(play.submitted) >= 128)
        await client.status()  # asks the scheduler, after all that is on its way there
        assert len(play.submitted) == 128
        play.gates["queue"].set()
        assert len((await asking).choices) == 400


async def test_a_chat_that_leaves_its_length_open_says_so(open_door):
    async with open_door(default_max_tokens=20) as door, door.client() as client:
        await client.chat(HI)
        await client.chat(HI, max_tokens=30)
        asked = [(each.sampling.max_tokens, each.open_ended) for each in door.play.submitted]
        assert asked == [(20, True), (30, False)]
