"""OpenAI's client, with batches."""

import asyncio
from pathlib import Path

import openai
import pytest

from sps2.common.config import Bus, Gateway
from sps2.common.errors import Invalid, PeerLost, Refused
from sps2.common.keys.keyring import Keyring
from sps2.services.gateway.protocols.batches.shapes import BatchRequest

from ...conftest import opened
from .asked import CHAT, COMPLETIONS, begun, client_of, ended, lines, results


async def test_answers_completions_and_names_what_failed(client, door):
    door.play.answer = str.upper
    content = lines({"prompt": "abc"}, {"prompt": ""}, {"prompt": "def", "max_tokens": 2})
    batch = await begun(client, content + b"\n\n", metadata={"of": "mine"})
    assert batch.status == "validating"
    batch = await ended(client, batch)
    assert batch.status == "completed"
    assert batch.metadata == {"of": "mine"}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    assert batch.created_at <= batch.in_progress_at <= batch.completed_at < batch.expires_at
    good = await results(client, batch.output_file_id)
    assert {*good} == {"r0", "r2"}
    response = good["r0"]["response"]
    assert response["status_code"] == 200
    assert response["body"]["choices"][0]["text"] == "ABC"
    assert response["body"]["id"] == f"cmpl-{response['request_id']}"
    assert good["r2"]["response"]["body"]["choices"][0]["finish_reason"] == "length"
    bad = await results(client, batch.error_file_id)
    assert bad["r1"]["response"]["status_code"] == 400
    assert bad["r1"]["response"]["body"]["error"]["param"] == "prompt"
    assert bad["r1"]["error"] is None


async def test_answers_chats_after_everybody_else(client, door):
    hi = {"messages": [{"role": "user", "content": "hi"}]}
    given = [{}, {"sps2": {"priority": 3}}, {"sps2": {"priority": -2}}]
    content = lines(*[hi | each for each in given], url=CHAT)
    batch = await ended(client, await begun(client, content, CHAT))
    good = await results(client, batch.output_file_id)
    said = {each["response"]["body"]["choices"][0]["message"]["content"] for each in good.values()}
    assert said == {"Hello, world."}
    assert sorted(each.priority for each in door.play.submitted) == [-8, -2, -1]


async def test_answers_responses(client, door):
    url = "/v1/responses"
    content = lines({"input": "hi"}, {"input": "hi", "stream": True}, {"input": 1}, url=url)
    batch = await ended(client, await begun(client, content, url))
    good = await results(client, batch.output_file_id)
    (message,) = good["r0"]["response"]["body"]["output"]
    assert message["content"][0]["text"] == "Hello, world."
    name = good["r0"]["response"]["body"]["id"]
    assert (await client.responses.retrieve(name)).output_text == "Hello, world."
    bad = await results(client, batch.error_file_id)
    params = {key: each["response"]["body"]["error"]["param"] for key, each in bad.items()}
    assert params == {"r1": "stream", "r2": "input"}
    assert [each.priority for each in door.play.submitted] == [-8]


async def test_answers_embeddings(client, door):
    url = "/v1/embeddings"
    content = lines({"input": ["ab", "c"]}, {"input": "x", "sps2": {"pooling": "mean"}}, url=url)
    batch = await ended(client, await begun(client, content, url))
    good = await results(client, batch.output_file_id)
    vectors = good["r0"]["response"]["body"]["data"]
    assert [each["embedding"] for each in vectors] == [pytest.approx([0.6, 0.8])] * 2
    assert {each.priority for each in door.play.submitted} == {-8}
    assert {each.sampling.pooling for each in door.play.submitted} == {"last", "mean"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "x", "stream": True}, "stream"),
        ({"prompt": "x", "sps2": {"progress": True}}, "sps2.progress"),
        ({"prompt": "x", "temperature": "hot"}, "temperature"),
        ({"prompt": "x", "model": "other"}, "model"),
    ],
)
async def test_a_wrong_request_fails_alone(client, body, field):
    batch = await ended(client, await begun(client, lines(body, {"prompt": "x"})))
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
    bad = await results(client, batch.error_file_id)
    assert bad["r0"]["response"]["body"]["error"]["param"] == field


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (b"", "empty_file", None),
        (b"\n{", "invalid_json", 2),
        (lines({"prompt": "x"}, url=CHAT), "invalid_value", 1),
        (lines({"prompt": "x"}, method="GET"), "invalid_value", 1),
        (lines({"prompt": "x"}, colour=1), "unknown_field", 1),
        (b'{"custom_id": "r0"}', "missing_field", 1),
        (lines({}) + b"\n" + lines({}), "invalid_value", 2),
    ],
)
async def test_a_wrong_file_fails_as_a_whole(client, door, content, code, line):
    batch = await ended(client, await begun(client, content))
    assert batch.status == "failed"
    assert [(each.code, each.line) for each in batch.errors.data] == [(code, line)]
    assert not door.play.submitted
    assert batch.output_file_id is None


async def test_few_are_in_work_at_once(open_door):
    async with open_door(batch_requests=2) as door, client_of(door) as client:
        door.play.gates["prefill"] = asyncio.Event()
        batches = [await begun(client, lines(*[{"prompt": "x"}] * 4)) for _ in range(2)]
        while len(door.play.submitted) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert len(door.play.submitted) == 2
        door.play.gates["prefill"].set()
        for each in batches:
            assert (await ended(client, each)).request_counts.completed == 4


async def test_a_key_without_quota_holds_nobody_up(folder, tmp_path):
    ring = Keyring(tmp_path / "keys")
    ring.make("test")
    few, free = ring.add_api_key("few", requests_per_minute=3), ring.add_api_key("free")
    bus = Bus(heartbeat_s=0.2, keys=str(ring.folder))
    settings = Gateway(batch_requests=1)
    async with (
        opened(folder, bus=bus, gateway=settings) as door,
        client_of(door, few) as slow,
        client_of(door, free) as other,
    ):
        waiting = await begun(slow, lines(*[{"prompt": "x"}] * 3))  # two are for this
        while (await slow.batches.retrieve(waiting.id)).request_counts.completed < 1:
            await asyncio.sleep(0.01)
        batch = await ended(other, await begun(other, lines(*[{"prompt": "x"}] * 3)))
        assert batch.request_counts.completed == 3
        assert (await slow.batches.retrieve(waiting.id)).request_counts.completed == 1


async def test_a_refused_request_is_tried_again(client, door, quick):
    door.play.fail["queue"] = Refused("the queue is full", 5)
    batch = await begun(client, lines({"prompt": "x"}))
    while len(door.play.submitted) < 3:
        await asyncio.sleep(0.01)
    del door.play.fail["queue"]
    assert (await ended(client, batch)).request_counts.completed == 1


async def test_a_lost_request_is_tried_three_times(client, door, quick):
    door.play.fail["prefill"] = PeerLost("prefill-0")
    batch = await ended(client, await begun(client, lines({"prompt": "x"})))
    assert len(door.play.submitted) == 3
    bad = await results(client, batch.error_file_id)
    assert bad["r0"]["response"]["status_code"] == 503


async def test_a_batch_is_cancelled(open_door):
    async with open_door(batch_requests=1) as door, client_of(door) as client:
        batch = await begun(client, lines(*[{"prompt": "x"}] * 4))
        door.play.gates["token 2"] = asyncio.Event()
        while not door.play.follows:
            await asyncio.sleep(0.01)
        batch = await client.batches.cancel(batch.id)
        assert batch.status == "cancelling"
        batch = await ended(client, batch)
        assert batch.status == "cancelled"
        assert batch.request_counts.failed == 4
        left = await results(client, batch.error_file_id)
        assert {*left} == {"r0", "r1", "r2", "r3"}
        assert {each["error"]["code"] for each in left.values()} == {"batch_cancelled"}
        assert len(door.play.submitted) == 1
        while not door.play.cancelled:
            await asyncio.sleep(0.01)
        with pytest.raises(openai.BadRequestError, match="it has ended"):
            await client.batches.cancel(batch.id)


async def test_a_batch_expires(client, door):
    now_s = [0.0]
    door.parts.batches.store.now = lambda: now_s[0]
    door.play.gates["prefill"] = asyncio.Event()
    batch = await begun(client, lines({"prompt": "x"}))
    now_s[0] = 24 * 3600 - 0.05
    while batch.status == "validating":
        batch = await client.batches.retrieve(batch.id)
    batch = await ended(client, batch)
    assert batch.status == "expired"
    left = await results(client, batch.error_file_id)
    assert left["r0"]["error"]["code"] == "batch_expired"


async def test_lists_batches(client):
    made = [await ended(client, await begun(client, lines({"prompt": "x"}))) for _ in range(3)]
    first = await client.batches.list(limit=2)
    assert [each.id for each in first.data] == [made[2].id, made[1].id]
    assert first.has_more
    assert [each.id async for each in first] == [each.id for each in reversed(made)]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": "x" * 600}}, "metadata"),
    ],
)
async def test_what_is_wrong_with_a_batch_is_named(client, more, field):
    file = await client.files.create(file=("in.jsonl", b"{}"), purpose="batch")
    asked = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.batches.create(**asked | more)
    assert refused.value.param == field
    with pytest.raises(openai.NotFoundError):
        await client.batches.retrieve("batch_none")


async def test_a_batch_whose_answers_have_no_room_fails(open_door):
    async with open_door(files_bytes=4 * 4096) as door, client_of(door) as client:
        door.play.answer = lambda prompt: "y" * 190
        batch = await ended(client, await begun(client, lines(*[{"prompt": "x", "n": 16}] * 4)))
        assert batch.status == "failed"
        assert batch.errors.data[0].code == "request_too_large"


async def test_every_key_has_its_own(folder, tmp_path):
    ring = Keyring(tmp_path / "keys")
    ring.make("test")
    keys = [ring.add_api_key(name) for name in ("one", "two")]
    bus = Bus(heartbeat_s=0.2, keys=str(ring.folder))
    settings = Gateway(files_bytes=40_000)
    async with opened(folder, bus=bus, gateway=settings) as door:
        async with client_of(door, keys[0]) as one, client_of(door, keys[1]) as two:
            batch = await ended(one, await begun(one, lines({"prompt": "x"})))
            assert batch.request_counts.completed == 1
            for name in (batch.input_file_id, batch.output_file_id):
                await one.files.content(name)
                with pytest.raises(openai.NotFoundError):
                    await two.files.content(name)
                with pytest.raises(openai.NotFoundError):
                    await two.files.delete(name)
            with pytest.raises(openai.NotFoundError):
                await two.batches.cancel(batch.id)
            with pytest.raises(openai.BadRequestError):
                await two.batches.create(
                    input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
                )
            assert not (await two.files.list()).data
            assert not (await two.batches.list()).data
            for _ in range(3):
                await two.files.create(file=("a", b"x" * 5_000), purpose="batch")
            with pytest.raises(openai.RateLimitError, match="half of the room"):
                await two.files.create(file=("a", b"x" * 6_000), purpose="batch")
        folder_of_files = door.parts.batches.store._folder.path
    assert not folder_of_files.exists()


async def test_the_input_may_be_deleted_while_it_is_read(client, door):
    door.play.gates["prefill"] = asyncio.Event()
    batch = await begun(client, lines(*[{"prompt": "x"}] * 20))
    await client.files.delete(batch.input_file_id)
    door.play.gates["prefill"].set()
    assert (await ended(client, batch)).request_counts.completed == 20


async def test_a_fault_within_a_request_is_its_own(client, door):
    door.play.fail["token 3"] = Invalid("it broke")
    batch = await ended(client, await begun(client, lines({"prompt": "x"})))
    bad = await results(client, batch.error_file_id)
    assert "it broke" in bad["r0"]["response"]["body"]["error"]["message"]


async def test_a_gateway_that_ends_meanwhile_leaves_no_file_open(open_door, monkeypatch):
    opened_files = []
    plain = Path.open

    def watched(path, *arguments, **more):
        opened_files.append(plain(path, *arguments, **more))
        return opened_files[-1]

    monkeypatch.setattr(Path, "open", watched)
    async with open_door(batch_requests=1) as door, client_of(door) as client:
        door.play.gates["token 2"] = asyncio.Event()
        await begun(client, lines({"prompt": ""}, {"prompt": "x"}))
        while not door.play.follows:
            await asyncio.sleep(0.01)
    written = [file for file in opened_files if "file-" in str(file.name)]
    assert written
    assert all(file.closed for file in written)


async def test_a_batch_that_is_cancelled_before_it_runs_closes_its_input(open_door):
    async with open_door() as door, client_of(door) as client:
        batches = door.parts.batches
        file = await client.files.create(file=("in.jsonl", lines({"prompt": "x"})), purpose="batch")
        request = BatchRequest(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
        batches.create(request, batches.store.get(file.id, ""), "", None)
        (task,) = batches._tasks
        reader = task.get_coro().cr_frame.f_locals["file"]
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert reader.closed
