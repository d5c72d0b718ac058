"""OpenAI's client, with files."""

import asyncio
import tempfile

import httpx
import openai
import pytest
from starlette import formparsers

from .asked import begun, client_of, ended, lines


async def test_the_gateway_counts_what_it_alone_has(client, door):
    async def held():
        async with door.client() as bus:
            status = await bus.status()
        counters = status.services[0].counters
        names = ("batches_running", "files_kept", "responses_stored")
        return [counters[name] for name in names]

    assert await held() == [0, 0, 0]
    door.play.gates["decode"] = asyncio.Event()
    batch = await begun(client, lines({"prompt": "abc"}))
    assert await held() == [1, 1, 0]
    door.play.gates["decode"].set()
    await ended(client, batch)
    await client.responses.create(model="tiny", input="hi")
    assert await held() == [0, 2, 1]


async def test_keeps_files(client):
    file = await client.files.create(
        file=("../in.jsonl", b"hello"),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (file.bytes, file.purpose, file.filename) == (5, "batch", "in.jsonl")
    assert file.expires_at == file.created_at + 3600
    assert await client.files.retrieve(file.id) == file
    assert (await client.files.content(file.id)).content == b"hello"
    other = await client.files.create(file=("b", b""), purpose="batch")
    assert [each.id for each in (await client.files.list()).data] == [other.id, file.id]
    ascending = await client.files.list(order="asc", limit=1)
    assert [each.id for each in ascending.data] == [file.id]
    assert [each.id for each in (await client.files.list(purpose="batch_output")).data] == []
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        await client.files.retrieve(file.id)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"data": {"purpose": "batch"}}, "file"),
        ({"files": {"file": b"x"}}, "purpose"),
        ({"files": {"file": b"x"}, "data": {"purpose": "fine-tune"}}, "purpose"),
        ({"files": {"file": b"x"}, "data": {"purpose": "batch", "colour": "red"}}, "colour"),
        (
            {
                "files": {"file": b"x"},
                "data": {"purpose": "batch", "expires_after[seconds]": "5"},
            },
            "seconds",
        ),
    ],
)
async def test_what_is_wrong_with_a_form_is_named(door, fields, field):
    fields.setdefault("files", {"other": b""})
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        refused = await http.post("/v1/files", **fields)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == field
        json_instead = await http.post("/v1/files", json={"purpose": "batch"})
        assert json_instead.status_code == 415
        form = {"content-type": "multipart/form-data; boundary=x"}
        broken = await http.post("/v1/files", content=b"nothing", headers=form)
        assert broken.status_code == 400


async def test_files_have_limits(open_door):
    async with open_door(files_bytes=40_000) as door, client_of(door) as client:
        with pytest.raises(openai.APIStatusError) as large:
            await client.files.create(file=("a", b"x" * 10_001), purpose="batch")
        assert large.value.status_code == 413

        async def more_than_it_says():
            yield b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n"
            for _ in range(100):
                yield b"x" * 4096

        headers = {"content-type": "multipart/form-data; boundary=x"}
        async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
            refused = await http.post("/v1/files", content=more_than_it_says(), headers=headers)
        assert refused.status_code == 413
        assert not (await client.files.list()).data

        kept = [await client.files.create(file=("a", b"x" * 9_999), purpose="batch")]
        for _ in range((40_000 - 9_999) // 4096):  # a small file takes a page of disk
            kept.append(await client.files.create(file=("a", b"x"), purpose="batch"))
        with pytest.raises(openai.RateLimitError, match="files fill"):
            await client.files.create(file=("a", b"x"), purpose="batch")
        await client.files.delete(kept[0].id)
        await client.files.create(file=("a", b"x" * 9_000), purpose="batch")
    async with open_door(files_bytes=0) as door, client_of(door) as client:
        with pytest.raises(openai.BadRequestError, match="files_bytes"):
            await client.files.create(file=("a", b"x"), purpose="batch")


async def test_the_file_of_a_form_that_does_not_end_is_closed(door, monkeypatch):
    made = []

    class Spooled(tempfile.SpooledTemporaryFile[bytes]):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", Spooled)
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nsome\r\nbytes'
    kind = {"content-type": "multipart/form-data; boundary=b"}
    async with httpx.AsyncClient(base_url=door.url) as http:
        answer = await http.post("/v1/files", content=form, headers=kind)
    assert (answer.status_code, [each.closed for each in made]) == (400, [True])
