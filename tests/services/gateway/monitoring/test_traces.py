"""Traces of answers: found by what clients know, in one clock, sent to a collector if wanted."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sps2.common.config import Tracing
from sps2.common.errors import Invalid, PeerLost
from sps2.common.messages import ListTraces, ShowTrace
from sps2.services.gateway.monitoring.export import sender

from ....waiting import until
from ..conftest import opened

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{PARENT}-01"
HANG_S = 60.0


@pytest.fixture
async def http(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=HANG_S) as http:
        yield http


async def ask(http, **headers):
    return await http.post("/v1/completions", json={"prompt": "abc"}, headers=headers)


async def shown(door, request):
    async with door.client() as client:
        return await client._peer.call(ShowTrace(request), HANG_S)


async def test_an_answer_is_found_by_each_of_its_names(http, door):
    answer = await ask(http, **{"x-request-id": "mine-1"})
    ids = (answer.json()["id"], answer.json()["id"].removeprefix("cmpl-"))
    for name in ("mine-1", *ids, door.play.submitted[0].request):
        trace = await shown(door, name)
        assert trace.request == answer.json()["id"]
        whole = trace.spans[0]
        assert (whole.name, whole.start_s, whole.service) == ("request", 0.0, "gateway")
        assert (whole.detail["tokens"], whole.detail["asked_as"]) == (14, "mine-1")
        assert {each.name for each in trace.spans} == {
            "request",
            "tokenise",
            "queue",
            "detokenise",
            "totals",
        }
        assert {each.parent for each in trace.spans[1:]} == {whole.id}


async def test_the_callers_trace_goes_on_here_and_in_the_services(http, door):
    trace = await shown(door, (await ask(http, traceparent=GIVEN)).headers["x-request-id"])
    assert (trace.trace_id, trace.spans[0].parent) == (TRACE, PARENT)
    assert door.play.submitted[0].traceparent == f"00-{TRACE}-{trace.spans[0].id}-01"
    async with door.client() as client:
        answer = await client.complete("abc", sps2={"traceparent": GIVEN})
        assert (await shown(door, answer.id)).trace_id == TRACE
        with pytest.raises(Invalid, match="traceparent"):
            await client.complete("abc", sps2={"traceparent": "00-junk"})
    for junk in ("junk", GIVEN.replace(TRACE, "0" * 32)):
        trace = await shown(door, (await ask(http, traceparent=junk)).headers["x-request-id"])
        assert trace.trace_id not in (TRACE, "0" * 32)


async def test_times_of_another_clock_are_told_in_ours_with_their_error(http, door):
    door.play.clock_s = 5000.0
    trace = await shown(door, (await ask(http)).headers["x-request-id"])
    clocks = {each.service: each for each in trace.clocks}
    assert clocks["gateway"].error_s == 0
    scheduler = clocks["scheduler"]
    assert scheduler.offset_s == pytest.approx(-5000, abs=scheduler.error_s)
    (queue,) = (each for each in trace.spans if each.name == "queue")
    assert 0 < queue.stop_s < HANG_S
    door.play.clock_s = 0.0
    trace = await shown(door, (await ask(http)).headers["x-request-id"])
    assert {each.error_s for each in trace.clocks} == {0.0}, "on one host there is one clock"


async def test_who_does_not_answer_is_named(http, door):
    name = (await ask(http)).headers["x-request-id"]
    assert (await shown(door, name)).missing == ("decode-1", "decode-2")
    await door.scheduler.close()
    assert (await shown(door, name)).missing == ("scheduler",)


async def test_the_last_answers_are_listed_with_how_they_ended(http, door):
    await ask(http)
    door.play.fail |= {f"token {at}": PeerLost("decode-1") for at in (1, 2, 3)}
    assert (await ask(http)).status_code == 503
    door.play.fail.clear()
    door.play.gates["queue"] = asyncio.Event()
    running = asyncio.create_task(ask(http))
    await until(lambda: len(door.play.submitted) == 1 + 3 + 1)
    async with door.client() as client:
        listed = (await client._peer.call(ListTraces(), HANG_S)).traces
        assert [each.is_running for each in listed] == [True, False, False]
        assert "decode-1" in listed[1].error
        assert (listed[2].prompt_tokens, listed[2].tokens, listed[2].error) == (3, 14, "")
        running.cancel()
        async with asyncio.timeout(HANG_S):
            while not listed[0].error:
                listed = (await client._peer.call(ListTraces(), HANG_S)).traces
        assert listed[0].error == "cancelled"
        with pytest.raises(Invalid, match=r"no trace of a request 'cmpl-0'; there are 3, see"):
            await client._peer.call(ShowTrace("cmpl-0"), HANG_S)


async def test_a_trace_that_is_not_there_beside_one_and_beside_none(http, door):
    for said in ("no request was traced yet", "there is 1 of another, see `spsctl trace`"):
        with pytest.raises(Invalid, match=said):
            await shown(door, "frobnicate")
        await ask(http)


async def test_refused_requests_push_no_others_out(http, door):
    """Of 8 pages 2 are theirs: one that could not be read, one with a field that is wrong."""
    answered = [(await ask(http)).json()["id"] for _ in range(4)]
    for _ in range(5):
        for body in ({"prompt": "abc", "top_p": 7}, {"prompt": "abc", "model": "other"}):
            assert (await http.post("/v1/completions", json=body)).status_code in (400, 404)
    async with door.client() as client:
        listed = (await client._peer.call(ListTraces(), HANG_S)).traces
    assert [each.request for each in listed if not each.error] == answered[::-1]
    assert sum(bool(each.error) for each in listed) == 2


@contextmanager
def collector(status: int = 200) -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """A real OTLP/HTTP receiver."""
    came: list[ExportTraceServiceRequest] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            came.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_sampled_traces_reach_a_collector(folder):
    with collector() as (endpoint, came):
        tracing = Tracing(otlp_endpoint=endpoint, otlp_share=0.0)
        async with opened(folder, tracing=tracing) as door:
            async with httpx.AsyncClient(base_url=door.url, timeout=HANG_S) as http:
                await ask(http)
                await ask(http, traceparent=GIVEN[:-1] + "0")
                answer = await ask(http, traceparent=GIVEN)
            sample = door.parts.metrics.registry.get_sample_value
            await until(lambda: sample("sps2_traces_total", {"outcome": "sent"}) == 1)
        (request,) = came
        spans = {
            span.name: (span, {a.key: a.value.string_value for a in each.resource.attributes})
            for each in request.resource_spans
            for scope in each.scope_spans
            for span in scope.spans
        }
        assert {*spans} == {"request", "tokenise", "queue", "detokenise", "totals"}
        whole, resource = spans["request"]
        assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE, PARENT)
        assert resource["service.name"] == "sps2"
        assert resource["service.instance.id"] == "gateway"
        assert spans["queue"][1]["service.instance.id"] == "scheduler"
        assert spans["queue"][0].parent_span_id == whole.span_id
        assert whole.end_time_unix_nano > whole.start_time_unix_nano > 1.6e18
        told = {each.key: each.value for each in whole.attributes}
        assert told["sps2.id"].string_value == answer.json()["id"]


async def test_a_collector_that_refuses_is_counted_and_holds_nobody_up(folder):
    with collector(status=400) as (endpoint, came):
        async with opened(folder, tracing=Tracing(otlp_endpoint=endpoint)) as door:
            async with httpx.AsyncClient(base_url=door.url, timeout=HANG_S) as http:
                assert (await ask(http)).status_code == 200
            sample = door.parts.metrics.registry.get_sample_value
            await until(lambda: sample("sps2_traces_total", {"outcome": "failed"}) == 1)
        assert came


def test_an_export_that_cannot_be_is_refused_at_the_start(monkeypatch):
    assert sender(Tracing(), "x", "0") is None
    with pytest.raises(Invalid, match="no http address"):
        sender(Tracing(otlp_endpoint="localhost:4318"), "x", "0")
    with pytest.raises(Invalid, match="kept"):
        sender(Tracing(kept=0, otlp_endpoint="http://127.0.0.1:1/v1/traces"), "x", "0")
    monkeypatch.setitem(__import__("sys").modules, "sps2.services.gateway.monitoring.otlp", None)
    with pytest.raises(Invalid, match=r"pip install 'sps2\[otel\]'"):
        sender(Tracing(otlp_endpoint="http://127.0.0.1:1/v1/traces"), "x", "0")
