"""/ready and what it says of a cluster that is not."""

import asyncio

import httpx

from ....waiting import until
from ..conftest import opened
from .asked import COMPLETIONS


async def test_is_ready_when_the_scheduler_is(http, door):
    assert (await http.get("/health")).status_code == 200
    ready = await http.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"missing": ""})
    door.play.waiting_for = "1 of 2 decode shards"
    await until(door.parts.readiness.waiting_for)
    ready = await http.get("/ready")
    assert ready.status_code == 503
    assert "1 of 2 decode shards" in ready.json()["error"]["message"]
    answer = await http.post(COMPLETIONS, json={"prompt": "x"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert (await http.get("/health")).status_code == 200


async def test_is_ready_with_fewer_shards_and_says_which_are_missing(http, door):
    """One meaning everywhere: /ready, the metric, the status, and what the gateway says itself."""
    door.play.waiting_for, door.play.serving = "1 of 2 decode shards", True
    await until(door.parts.readiness.missing)
    ready = await http.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"missing": "1 of 2 decode shards"})
    assert "sps2_ready 1.0" in (await http.get("/metrics")).text.splitlines()
    async with door.client() as client:
        status = await client.status()
    assert (status.ready, status.waiting_for) == (True, "")
    assert status.missing == "1 of 2 decode shards"
    assert (status.services[0].state, status.services[0].waiting_for) == ("ready", "")


async def test_requests_wait_for_a_cluster_that_is_back_soon(folder):
    """As while the scheduler restarts: /ready says that nothing can be asked now."""
    async with (
        opened(folder, away_s=60.0) as door,
        httpx.AsyncClient(base_url=door.url, timeout=60) as http,
    ):
        door.play.waiting_for = "the scheduler"
        await until(door.parts.readiness.waiting_for)
        answer = asyncio.create_task(http.post(COMPLETIONS, json={"prompt": "x"}))
        assert (await http.get("/ready")).status_code == 503
        assert not answer.done()
        door.play.waiting_for = ""
        assert (await answer).status_code == 200


async def test_is_not_ready_without_the_scheduler(http, door):
    await door.scheduler.close()
    await until(door.parts.readiness.waiting_for)
    assert "scheduler" in (await http.get("/ready")).json()["error"]["message"]
