"""A request with an `Idempotency-Key` is run once, and its answer can be had again."""

import asyncio
import json

import httpx
import msgspec
import pytest

from sps2.common.config import Cluster, Gateway
from sps2.common.errors import Cancelled, Invalid, Refused
from sps2.services.gateway import kept_answer
from sps2.services.gateway.kept_answer import UNREAD
from sps2.services.gateway.others.gateways import Others
from sps2.services.gateway.repeats import ANSWER_BYTES, Repeats, asked

from ...waiting import until

PATH = "/v1/chat/completions"
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
KEY = {"idempotency-key": "one"}


async def events_of(answer):
    """The events of a stream, without their ids; what is sent in pauses is left out."""
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield line


@pytest.fixture
async def client(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as client:
        yield client


async def test_a_repeated_request_gets_the_same_answer(client, door):
    first = await client.post(PATH, json=CHAT, headers=KEY)
    again = await client.post(PATH, json=CHAT, headers=KEY)
    assert again.json() == first.json()
    assert first.json()["choices"][0]["message"]["content"] == "Hello, world."
    assert len(door.play.submitted) == 1
    other = await client.post(PATH, json=CHAT, headers={"idempotency-key": "two"})
    assert other.json()["id"] != first.json()["id"]
    assert len(door.play.submitted) == 2


async def test_another_request_with_the_key_is_refused(client):
    await client.post(PATH, json=CHAT, headers=KEY)
    for path, body in ((PATH, {**CHAT, "max_tokens": 3}), ("/v1/completions", {"prompt": "Hi"})):
        refused = await client.post(path, json=body, headers=KEY)
        assert refused.status_code == 422
        error = refused.json()["error"]
        assert error["code"] == "idempotency_key_reused"
        assert "'one' came with another request before" in error["message"]
    for key in ("", "x" * 256, "ä".encode("latin-1")):
        wrong = await client.post(PATH, json=CHAT, headers={b"idempotency-key": key})
        assert wrong.status_code == 400
        assert "1 to 255 printable characters" in wrong.json()["error"]["message"]


async def test_a_client_that_left_gets_all_of_its_stream(client, door):
    asked = {"json": {**CHAT, "stream": True}, "headers": KEY}
    play = door.play
    play.gates["token 3"] = asyncio.Event()
    async with client.stream("POST", PATH, **asked) as answer:
        events = events_of(answer)
        begun = [await anext(events) for _ in range(3)]
    assert not play.cancelled
    play.gates["token 3"].set()
    async with client.stream("POST", PATH, **asked) as answer:
        whole = [event async for event in events_of(answer)]
    assert whole[:3] == begun
    said = [json.loads(event[6:]) for event in whole[:-1]]
    text = "".join(each["choices"][0]["delta"].get("content", "") for each in said)
    assert text == "Hello, world."
    assert whole[-1] == "data: [DONE]"
    assert (len(play.submitted), play.cancelled) == (1, [])


async def test_a_stream_goes_on_where_it_was_lost(client, door):
    asked = {"json": {**CHAT, "stream": True}}

    async def events(headers):
        text = (await client.post(PATH, **asked, headers=KEY | headers)).text
        return [event for event in text.split("\n\n") if event]  # without signs of life

    whole = await events({})
    ids = [event.partition("\n")[0].removeprefix("id: ") for event in whole]
    for lost in (0, 3, len(ids) - 2):  # the last is [DONE], without an id
        assert await events({"last-event-id": ids[lost]}) == whole[lost + 1 :]
    assert len(door.play.submitted) == 1
    refused = [
        ({**KEY, "last-event-id": f"chatcmpl-{'0' * 12}:3"}, CHAT | {"stream": True}, 404),
        ({"idempotency-key": "two", "last-event-id": ids[3]}, CHAT | {"stream": True}, 404),
        ({"last-event-id": ids[3]}, CHAT | {"stream": True}, 400),
        ({"idempotency-key": "three", "last-event-id": ids[3]}, CHAT, 400),
        ({**KEY, "last-event-id": "3"}, CHAT | {"stream": True}, 400),
        ({**KEY, "last-event-id": f"{ids[0][:-1]}{len(ids)}"}, CHAT | {"stream": True}, 400),
    ]
    for headers, body, status in refused:
        answer = await client.post(PATH, json=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert "`Last-Event-ID`" in answer.json()["error"]["message"]
    assert len(door.play.submitted) == 1


async def test_what_failed_is_tried_again(client, door):
    door.play.fail["queue"] = Refused("full")
    assert (await client.post(PATH, json=CHAT, headers=KEY)).status_code == 429
    door.play.fail.clear()
    assert (await client.post(PATH, json=CHAT, headers=KEY)).status_code == 200


async def test_an_answer_that_nobody_reads_ends(client, door, monkeypatch):
    monkeypatch.setattr(kept_answer, "LEFT_S", 0.01)
    door.play.gates["token 3"] = asyncio.Event()
    asked = {"json": {**CHAT, "stream": True}, "headers": KEY}
    async with client.stream("POST", PATH, **asked) as answer:
        await anext(answer.aiter_lines())
    await until(lambda: door.play.cancelled)


async def test_it_can_be_switched_off(open_door):
    async with (
        open_door(repeatable_bytes=0) as door,
        httpx.AsyncClient(base_url=door.url) as client,
    ):
        for _ in range(2):
            await client.post(PATH, json=CHAT, headers=KEY)
        assert len(door.play.submitted) == 2


# the memory, without a gateway


class Word(msgspec.Struct):
    text: str


def repeats(most, clock=lambda: 0.0):
    return Repeats(most, 60.0, Others(Cluster(gateway=Gateway()), 0), clock)


def request(key, body="x"):
    return asked("", key, "/", Word(body))


async def words(*texts, gate=None):
    for text in texts:
        yield Word(text)
    if gate is not None:
        await gate.wait()
        yield Word("end")


async def read(answer):
    return [each.text async for each in answer]


async def test_answers_are_forgotten_after_a_while():
    now = [0.0]
    kept = repeats(1 << 20, lambda: now[0])
    assert await read(await kept.answer(request("a"), words("1", "2"), Word)) == ["1", "2"]
    now[0] = 59.0
    assert await read(await kept.answer(request("a"), words("3"), Word)) == ["1", "2"]
    with pytest.raises(Invalid):
        await kept.answer(request("a", "other"), words("3"), Word)
    now[0] = 60.0
    assert await read(await kept.answer(request("a"), words("3"), Word)) == ["3"]
    await kept.close()


async def test_the_oldest_that_ended_make_room():
    kept = repeats(3 * ANSWER_BYTES + 100)
    gate = asyncio.Event()
    running = await kept.answer(request("running"), words("r", gate=gate), Word)
    assert (await anext(running)).text == "r"
    for key in "abc":
        assert await read(await kept.answer(request(key), words(key), Word)) == [key]
    found = [await read(await kept.answer(request(key), words("new"), Word)) for key in ("c", "b")]
    assert found == [["c"], ["b"]]
    assert await read(await kept.answer(request("a"), words("new"), Word)) == ["new"]
    gate.set()
    assert await read(running) == ["end"]
    assert await read(await kept.answer(request("running"), words("new"), Word)) == ["r", "end"]
    await kept.close()


async def test_an_answer_for_which_there_is_no_room_is_read_by_who_reads_it_already():
    kept = repeats(ANSWER_BYTES + 100)
    gate = asyncio.Event()
    long = await kept.answer(request("long"), words(*["x" * 40] * 8, gate=gate), Word)
    assert (await anext(long)).text == "x" * 40
    await until(lambda: not kept._by_key)
    again = await kept.answer(request("long"), words("again"), Word)
    assert await read(again) == ["again"]
    gate.set()
    assert await read(long) == ["x" * 40] * 7 + ["end"]
    await until(lambda: not kept._running)
    assert 0 <= kept._bytes <= ANSWER_BYTES + 100
    slow = await kept.answer(request("slow"), words(*["y"] * (UNREAD + 100)), Word)
    with pytest.raises(Cancelled, match="parts wait for a client"):
        await read(slow)
    await kept.close()
