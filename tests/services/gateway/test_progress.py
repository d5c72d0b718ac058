"""Progress in the stream: asked for, it comes before all text; not asked for, nothing of it."""

import json

import httpx
import pytest

from sps2.common.api.collect import collect_completion
from sps2.common.api.progress import PrefillProgress
from sps2.common.messages import Progress, Sampling
from sps2.services.gateway.generate import Job
from sps2.services.gateway.progress import Prompts


def test_choices_are_added_up() -> None:
    jobs = [Job(str(each), (1,) * 100, Sampling(1, 0)) for each in range(2)]
    prompts = Prompts(jobs)
    assert prompts.add(0, Progress(30, 100, 30)).progress == PrefillProgress(30, 200, 30)
    assert prompts.add(1, Progress(60, 100, 0, 40.0)).progress == PrefillProgress(90, 200, 30, 40)
    assert prompts.add(0, Progress(80, 100, 30, 10.0)).progress.eta_ms == 40.0


@pytest.mark.parametrize("kind", ["complete_stream", "chat_stream"])
async def test_progress_comes_first(door, kind) -> None:
    door.play.progress = [Progress(2, 9, 2), Progress(6, 9, 2, 30.0)]
    asked = "hello" if kind == "complete_stream" else [{"role": "user", "content": "hello"}]
    async with door.client() as client:
        stream = getattr(client, kind)
        chunks = [each async for each in stream(asked, sps2={"progress": True})]
        told = [each.sps2.progress for each in chunks if each.sps2]
        assert told == [PrefillProgress(2, 9, 2), PrefillProgress(6, 9, 2, 30.0)]
        assert all(each.sps2 and not each.choices for each in chunks[:2])
        assert next(each.choices for each in chunks if not each.sps2)

        plain = [each async for each in stream(asked)]
        assert not any(each.sps2 for each in plain)


async def test_progress_does_not_get_into_the_whole_answer(door) -> None:
    door.play.progress = [Progress(2, 9, 2)]
    async with door.client() as client:
        chunks = client.complete_stream("hello", sps2={"progress": True})
        answer = await collect_completion(chunks)
    assert answer.choices[0].text == "Hello, world."


async def test_over_http(door) -> None:
    door.play.progress = [Progress(2, 9, 2, 70.0)]
    body = {"prompt": "hello", "sps2": {"progress": True}}
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        answer = await http.post("/v1/completions", json=body | {"stream": True})
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        first = json.loads(events[0])
        assert first["sps2"]["progress"] == {
            "processed": 2,
            "total": 9,
            "cached": 2,
            "eta_ms": 70.0,
        }
        assert first["choices"] == []
        assert all("sps2" not in json.loads(each) for each in events[1:])

        refused = await http.post("/v1/completions", json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "sps2.progress"
        assert "stream" in refused.json()["error"]["message"]
