"""Answers in work, their traces, metrics and status are reached through any gateway."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sps2.common.errors import Cancelled, Invalid
from sps2.common.messages import ListTraces, ShowTrace
from sps2.services.gateway.monitoring import cluster

from ....waiting import until


async def test_an_answer_is_cancelled_from_anywhere(doors):
    doors[0].play.gates["token 3"] = asyncio.Event()
    async with doors[0].client() as first, doors[1].client() as second:
        stream = first.complete_stream("abc")
        chunk = await anext(stream)
        await second.cancel(chunk.id)
        with pytest.raises(Cancelled, match=chunk.id):
            async for _ in stream:
                pass
        await until(lambda: doors[0].play.cancelled)
        for client in (first, second):
            with pytest.raises(Invalid, match="no running request has id"):
                await client.cancel(chunk.id)


async def test_a_trace_is_shown_anywhere(doors, clients):
    first, second = clients
    asked = {"json": {"prompt": "x"}, "headers": {"x-request-id": "mine"}}
    answer = (await first.post("/v1/completions", **asked)).json()
    await second.post("/v1/completions", json={"prompt": "x"})
    service = doors[1].parts._service
    for name in (answer["id"], "mine"):
        trace = await service.show_trace(ShowTrace(name))
        assert trace.request == answer["id"]
        assert trace.spans[0].service == "gateway"
    with pytest.raises(Invalid, match="no trace of a request 'nothing'"):
        await service.show_trace(ShowTrace("nothing"))
    listed = (await service.list_traces(ListTraces())).traces
    assert [each.request for each in listed][1] == answer["id"]
    assert len(listed) == 2


async def test_the_page_of_metrics_has_all_gateways(clients):
    first, second = clients
    await first.post("/v1/completions", json={"prompt": "x"})
    for _ in range(2):
        await second.post("/v1/completions", json={"prompt": "x"})
    for client in clients:
        page = (await client.get("/metrics")).text
        ended = {
            sample.labels["gateway"]: sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == "sps2_requests_total" and sample.labels["status"] == "ok"
        }
        assert ended == {"0": 1, "1": 2}
        types = [line for line in page.splitlines() if line.startswith("# TYPE")]
        assert len(types) == len(set(types))


async def test_the_status_has_all_gateways(doors, monkeypatch):
    monkeypatch.setattr(cluster, "DEADLINE_S", 60.0)
    for door in doors:
        async with door.client() as client:
            services = (await client.status()).services
            known = {each.service: each for each in services}
            assert [each.service for each in services[:2]] == ["gateway", "gateway.1"]
            assert known["gateway"].state == known["gateway.1"].state == "ready"
            assert known["gateway.1"].address == "tcp://127.0.0.1:8016"
