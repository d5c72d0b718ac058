"""Files and batches are the same at every gateway."""

import asyncio

from ..protocols.batches.asked import begun, client_of, ended, lines, results


async def test_a_file_is_anywhere(doors):
    async with client_of(doors[0]) as first, client_of(doors[1]) as second:
        content = lines({"prompt": "x"})
        one = await first.files.create(file=("one", content), purpose="batch")
        two = await second.files.create(file=("two", content), purpose="batch")
        for client in (first, second):
            listed = await client.files.list()
            assert {each.id for each in listed.data} == {one.id, two.id}
            page = await client.files.list(limit=1)
            rest = await client.files.list(after=page.data[0].id)
            assert [*page.data, *rest.data] == listed.data
            for file in (one, two):
                assert await client.files.retrieve(file.id) == file
                assert (await client.files.content(file.id)).content == content
        await second.files.delete(one.id)
        await first.files.delete(two.id)
        assert not (await first.files.list()).data


async def test_a_batch_is_anywhere(doors):
    async with client_of(doors[0]) as first, client_of(doors[1]) as second:
        file = await first.files.create(file=("in", lines({"prompt": "x"})), purpose="batch")
        batch = await second.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
        done = await ended(first, batch)
        assert done.status == "completed"
        answer = (await results(first, done.output_file_id))["r0"]
        assert answer["response"]["body"]["choices"][0]["text"] == "Hello, world."
        for client in (first, second):
            assert [each.id for each in (await client.batches.list()).data] == [batch.id]


async def test_a_batch_is_cancelled_from_anywhere(doors):
    doors[0].play.gates["queue"] = asyncio.Event()
    async with client_of(doors[0]) as first, client_of(doors[1]) as second:
        await begun(first, lines({"prompt": "x"}))
        (batch,) = (await second.batches.list()).data
        await second.batches.cancel(batch.id)
        assert (await ended(second, batch)).status == "cancelled"
