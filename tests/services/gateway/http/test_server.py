"""The gateway over raw HTTP: errors, limits, event streams, disconnects."""

import asyncio
import json
from importlib.metadata import version

import httpx
import pytest

from sps2.common.errors import Internal, PeerLost, Refused, Unsound


@pytest.fixture
async def http(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        yield http


async def until(condition, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


FAULTS = [
    (COMPLETIONS, {"prompt": "x", "surprise": 1}, "surprise"),
    (COMPLETIONS, {"prompt": "x", "suffix": "y"}, "suffix"),
    (COMPLETIONS, {"prompt": "x", "best_of": 3}, "best_of"),
    (COMPLETIONS, {"prompt": "x", "n": 17}, "n"),
    (COMPLETIONS, {"prompt": "x", "n": 10**9}, "n"),
    (COMPLETIONS, {"prompt": "x", "n": 0}, "n"),
    (COMPLETIONS, {"prompt": "x", "n": True}, "n"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": -1}, "max_tokens"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 0}, "max_tokens"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": "9"}, "max_tokens"),
    (COMPLETIONS, {"prompt": "x", "temperature": -0.1}, "temperature"),
    (COMPLETIONS, {"prompt": "x", "temperature": 2.1}, "temperature"),
    (COMPLETIONS, {"prompt": "x", "top_p": -0.1}, "top_p"),
    (COMPLETIONS, {"prompt": "x", "top_p": 1.5}, "top_p"),
    (COMPLETIONS, {"prompt": "x", "top_k": -2}, "top_k"),
    (COMPLETIONS, {"prompt": "x", "min_p": 2}, "min_p"),
    (COMPLETIONS, {"prompt": "x", "seed": 2**63}, "seed"),
    (COMPLETIONS, {"prompt": "x", "stop": ["a"] * 33}, "stop"),
    (COMPLETIONS, {"prompt": "x", "stop_token_ids": [260]}, "stop_token_ids"),
    (COMPLETIONS, {"prompt": "x", "presence_penalty": 3}, "presence_penalty"),
    (COMPLETIONS, {"prompt": "x", "frequency_penalty": -3}, "frequency_penalty"),
    (COMPLETIONS, {"prompt": "x", "repetition_penalty": 0}, "repetition_penalty"),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {"-1": 1}}, "logit_bias"),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {"260": 1}}, "logit_bias"),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias"),
    (COMPLETIONS, {"prompt": "x", "logprobs": 21}, "logprobs"),
    (COMPLETIONS, {"prompt": "x", "logprobs": True}, "logprobs"),
    (COMPLETIONS, {"prompt": "x", "min_tokens": 17}, "min_tokens"),
    (COMPLETIONS, {"prompt": "x", "stream_options": {}}, "stream_options"),
    (COMPLETIONS, {"prompt": "x", "sps2": {"sp_degree": 0}}, "sps2.sp_degree"),
    (COMPLETIONS, {"prompt": "x", "sps2": {"attention": "quick"}}, "sps2.attention"),
    (COMPLETIONS, {"prompt": "x", "sps2": {"method": "csa"}}, "sps2.method"),
    (COMPLETIONS, {"prompt": "x", "sps2": {"wire": 8}}, "sps2.wire"),
    (COMPLETIONS, {"prompt": "x", "sps2": {"pipelined": "no"}}, "sps2.pipelined"),
    (COMPLETIONS, {"prompt": "x", "sps2": {"speed": 1}}, "sps2.speed"),
    (COMPLETIONS, {"prompt": ""}, "prompt"),
    (COMPLETIONS, {"prompt": []}, "prompt"),
    (COMPLETIONS, {"prompt": [[]]}, "prompt"),
    (COMPLETIONS, {"prompt": ["x", 1]}, "prompt"),
    (COMPLETIONS, {"prompt": [260]}, "prompt"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt[0]"),
    (COMPLETIONS, {"prompt": {"a": 1}}, "prompt"),
    (COMPLETIONS, {}, "prompt"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {}, "messages"),
    (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": HI, "top_logprobs": 2}, "top_logprobs"),
    (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"messages": HI, "max_tokens": 0}, "max_tokens"),
    (CHAT, {"messages": HI, "echo": True}, "echo"),
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "x", "messages": HI}, "prompt"),
    ("/detokenize", {"tokens": [-5]}, "tokens[0]"),
]


async def test_names_the_field_at_fault(http):
    for path, body, param in FAULTS:
        answer = await http.post(path, json=body)
        assert answer.status_code == 400, (body, answer.text)
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param, body
        assert error["message"]
        assert set(error) == {"message", "type", "param", "code"}


CODES = [
    (COMPLETIONS, {"prompt": None}, "prompt", "missing_field"),
    (COMPLETIONS, {"prompt": "x", "best_of": 2}, "best_of", "unsupported_parameter"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 0}, "max_tokens", "invalid_value"),
    (COMPLETIONS, {"prompt": "x", "min_tokens": 17}, "min_tokens", "invalid_value"),
    (COMPLETIONS, {"prompt": "x", "stream_options": {}}, "stream_options", "invalid_value"),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    (COMPLETIONS, {"prompt": ["x", 1]}, "prompt", "invalid_value"),
    (COMPLETIONS, {"prompt": ["x"] * 600}, "prompt", "invalid_value"),
    (COMPLETIONS, {"prompt": ["x"] * 300, "n": 2}, "prompt", "invalid_value"),
    (COMPLETIONS, {"prompt": "x", "n": 600}, "n", "invalid_value"),
    (COMPLETIONS, {"prompt": "x", "sps2": {"progress": True}}, "sps2.progress", "invalid_value"),
    (CHAT, {"messages": HI, "top_logprobs": 2}, "top_logprobs", "invalid_value"),
]


async def test_has_a_code_for_every_fault(http):
    for path, body, param, code in CODES:
        error = (await http.post(path, json=body)).json()["error"]
        assert (error["param"], error["code"]) == (param, code), (body, error)


async def test_says_how_many_answers_one_request_may_have(http, open_door):
    async def told(http, **body):
        return (await http.post(COMPLETIONS, json=body)).json()["error"]

    error = await told(http, prompt=["x"] * 300, n=2)
    assert error["message"] == (
        "one request may have 512 answers at most (gateway.max_requests); this one has 300 "
        "prompts with `n` 2: send several requests"
    )
    async with (
        open_door(max_requests=1) as door,
        httpx.AsyncClient(base_url=door.url, timeout=60) as http,
    ):
        error = await told(http, prompt="x", n=2)
        assert error["param"] == "n"
        assert error["message"].startswith("one request may have 1 answer at most")


NO_JSON = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b"nonsense", "invalid_json"),
    (b'{"prompt": "\xff\xfe"}', "invalid_utf8"),
    (b'{"prompt": "\\ud800"}', "invalid_json"),
    (b'{"prompt": NaN}', "invalid_json"),
    (b"[" * 200_000, "invalid_value"),
    (b'{"prompt":' + b"[" * 200_000, "invalid_value"),
    (b"\x00\x01\x02", "invalid_json"),
]


async def test_refuses_what_is_no_json(http):
    for raw, code in NO_JSON:
        answer = await http.post(COMPLETIONS, content=raw)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == code


async def test_refuses_what_does_not_fit_the_context(http):
    answer = await http.post(COMPLETIONS, json={"prompt": "x" * 201})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert "200" in error["message"]
    assert "201" in error["message"]

    answer = await http.post(COMPLETIONS, json={"prompt": "x" * 150, "max_tokens": 51})
    assert answer.json()["error"]["param"] == "max_tokens"
    assert "150" in answer.json()["error"]["message"]
    assert (await http.post(COMPLETIONS, json={"prompt": "x" * 195})).status_code == 200


async def test_unknown_routes_methods_and_models(http):
    lost = await http.get("/v1/nothing")
    assert lost.status_code == 404
    assert lost.json()["error"]["type"] == "invalid_request_error"
    wrong = await http.get(COMPLETIONS)
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["code"] == "method_not_allowed"
    unknown = await http.post(COMPLETIONS, json={"model": "gpt", "prompt": "x"})
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"
    long = await http.post(COMPLETIONS, json={"model": "m" * 100_000, "prompt": "x"})
    assert len(long.content) < 1000


async def test_a_body_over_the_limit_is_413(open_door):
    async with open_door(max_body_bytes=1000) as door, httpx.AsyncClient(base_url=door.url) as http:
        for _ in range(2):
            sized = await http.post(COMPLETIONS, content=b" " * 1001)
            assert sized.status_code == 413
            assert sized.json()["error"]["code"] == "request_too_large"

        async def parts():
            for _ in range(500):
                yield b" " * 10_000

        chunked = await http.post(COMPLETIONS, content=parts())
        assert chunked.status_code == 413
        assert (await http.post(COMPLETIONS, json={"prompt": "x"})).status_code == 200


async def test_maps_errors_to_statuses(http, door):
    door.play.fail["queue"] = Refused("full", 2.5)
    full = await http.post(COMPLETIONS, json={"prompt": "x"})
    assert full.status_code == 429
    assert full.headers["retry-after"] == "3"
    streamed = await http.post(COMPLETIONS, json={"prompt": "x", "stream": True})
    assert streamed.status_code == 429
    door.play.fail["queue"] = PeerLost("prefill-0")
    lost = await http.post(COMPLETIONS, json={"prompt": "x"})
    assert lost.status_code == 503
    assert "prefill-0" in lost.json()["error"]["message"]
    assert lost.headers["retry-after"]
    door.play.fail["queue"] = Unsound("the model's logits are not finite numbers")
    unsound = await http.post(COMPLETIONS, json={"prompt": "x"})
    assert (unsound.status_code, unsound.json()["error"]["code"]) == (500, "model_unsound")
    assert "not finite" in unsound.json()["error"]["message"]
    door.play.fail["queue"] = Internal("a secret of the inside")
    assert "secret" not in (await http.post(COMPLETIONS, json={"prompt": "x"})).text


async def test_more_requests_than_allowed_are_refused(open_door):
    async with open_door(max_requests=1) as door, httpx.AsyncClient(base_url=door.url) as http:
        door.play.gates["decode"] = asyncio.Event()
        first = asyncio.create_task(http.post(COMPLETIONS, json={"prompt": "x"}))
        await until(lambda: door.play.submitted)
        second = await http.post(COMPLETIONS, json={"prompt": "x"})
        assert second.status_code == 429
        door.play.gates["decode"].set()
        assert (await first).status_code == 200
        both = await http.post(COMPLETIONS, json={"prompt": "x", "n": 2})
        assert both.status_code == 400
        assert (await http.post(COMPLETIONS, json={"prompt": "x"})).status_code == 200


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


async def test_is_not_ready_without_the_scheduler(http, door):
    await door.scheduler.close()
    await until(door.parts.readiness.waiting_for)
    assert "scheduler" in (await http.get("/ready")).json()["error"]["message"]


async def test_streams_events(http):
    body = {"prompt": "x", "stream": True, "max_tokens": 2}
    async with http.stream("POST", COMPLETIONS, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "content-length" not in answer.headers
        lines = [line async for line in answer.aiter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert [event["choices"][0]["text"] for event in events] == ["H", "e"]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, "length"]
    assert "usage" not in events[0]


async def test_a_silent_stream_is_kept_alive(http, door):
    door.play.gates["prefill"] = asyncio.Event()
    async with http.stream("POST", COMPLETIONS, json={"prompt": "x", "stream": True}) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith(": ")
        door.play.gates["prefill"].set()
        rest = [line async for line in lines]
    assert "data: [DONE]" in rest


async def test_an_error_in_a_stream_is_an_event(http, door):
    door.play.gates["prefill"] = asyncio.Event()
    door.play.fail["prefill"] = PeerLost("prefill-1")
    async with http.stream("POST", COMPLETIONS, json={"prompt": "x", "stream": True}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        door.play.gates["prefill"].set()
        rest = [line async for line in lines if line.startswith("data")]
    assert json.loads(rest[0].removeprefix("data: "))["error"]["code"] == "peer_lost"
    assert rest[1:] == ["data: [DONE]"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["queue", "prefill", "decode", "token 3"])
async def test_a_client_that_leaves_cancels(http, door, stage, stream):
    door.play.gates[stage] = asyncio.Event()
    body = {"prompt": "x", "stream": stream, "n": 2}
    request = asyncio.create_task(http.post(COMPLETIONS, json=body))
    if stage in ("queue", "prefill"):
        await until(lambda: len(door.play.submitted) == 2)
    else:
        await until(lambda: door.play.follows == 2)
    request.cancel()
    await asyncio.wait({request})
    await until(lambda: len(door.play.cancelled) == 2, seconds=2)
    assert not door.play.finished
    door.play.gates.clear()
    assert (await http.post(COMPLETIONS, json={"prompt": "x"})).status_code == 200


async def test_a_stop_string_ends_the_request(http, door):
    body = {"prompt": "x", "stop": ["o, w", "zzz"], "max_tokens": 100, "logprobs": 1}
    door.play.gates["token 12"] = asyncio.Event()
    answer = (await http.post(COMPLETIONS, json=body)).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hell", "stop")
    assert choice["logprobs"]["tokens"] == ["H", "e", "l", "l"]
    assert answer["usage"]["sps2"]["decode_bytes"] is None
    assert answer["usage"]["sps2"]["exchange_bytes"] == 100
    await until(lambda: door.play.cancelled)


async def test_scores_a_prompt(http, door):
    body = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 1}
    answer = (await http.post(COMPLETIONS, json=body)).json()
    choice = answer["choices"][0]
    assert choice["text"] == "abc"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [None, -0.5, -0.5],
        "top_logprobs": [None, {"A": -0.5, "b": -0.5}, {"A": -0.5, "c": -0.5}],
        "text_offset": [0, 1, 2],
    }
    assert answer["usage"]["completion_tokens"] == 0
    assert door.play.submitted[0].sampling.max_tokens == 1


async def test_echoes_with_logprobs(http):
    body = {"prompt": [97, 98], "max_tokens": 2, "echo": True, "logprobs": 0}
    choice = (await http.post(COMPLETIONS, json=body)).json()["choices"][0]
    assert choice["text"] == "abHe"
    assert choice["logprobs"]["tokens"] == ["a", "b", "H", "e"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.25, -0.25]


async def test_characters_come_whole(http, door):
    door.play.answer = lambda prompt: "aé€😀b"
    body = {"prompt": "x", "stream": True, "max_tokens": 100}
    texts = []
    async with http.stream("POST", COMPLETIONS, json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                texts.append(json.loads(line[6:])["choices"][0]["text"])
    assert [text for text in texts if text] == ["a", "é", "€", "😀", "b"]


async def test_tokenizes(http):
    tokens = (await http.post("/tokenize", json={"prompt": "hé<|end|>"})).json()
    assert tokens == {"tokens": [104, 195, 169, 256], "count": 4, "max_model_len": 200}
    text = (await http.post("/detokenize", json={"tokens": tokens["tokens"]})).json()
    assert text == {"prompt": "hé<|end|>"}
    chat = (await http.post("/tokenize", json={"messages": HI})).json()
    assert bytes(chat["tokens"]) == b"user:hi\nassistant:"


async def test_measures(http, door):
    await http.post(COMPLETIONS, json={"prompt": "abc"})
    await http.post(COMPLETIONS, json={"prompt": "abc", "temperature": 9})
    await http.post(COMPLETIONS, json={"prompt": "abc" * 100})
    await http.post(COMPLETIONS, content=b"{")
    await http.get("/v1/unknown")
    await http.get("/other/unknown")
    await http.get(COMPLETIONS)
    await http.request("LINK", "/health")
    answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    model = 'model_name="tiny"'
    for line in (
        f'sps2_requests_total{{{model},status="ok"}} 1.0',
        f'sps2_requests_total{{{model},status="invalid"}} 3.0',
        f"sps2_prompt_tokens_total{{{model}}} 3.0",
        f"sps2_generation_tokens_total{{{model}}} 14.0",
        f"sps2_time_to_first_token_seconds_count{{{model}}} 1.0",
        f"sps2_inter_token_latency_seconds_count{{{model}}} 13.0",
        f"sps2_request_time_per_output_token_seconds_count{{{model}}} 1.0",
        f"sps2_e2e_request_latency_seconds_count{{{model}}} 1.0",
        f'sps2_request_success_total{{finished_reason="stop",{model}}} 1.0',
        f"sps2_request_queue_time_seconds_sum{{{model}}} 0.25",
        f"sps2_request_prompt_tokens_sum{{{model}}} 3.0",
        f"sps2_request_generation_tokens_sum{{{model}}} 14.0",
        f"sps2_request_params_max_tokens_sum{{{model}}} 16.0",
        f"sps2_request_params_n_sum{{{model}}} 1.0",
        'sps2_http_requests_total{code="200",method="POST",route="/v1/completions"} 1.0',
        'sps2_http_requests_total{code="400",method="POST",route="/v1/completions"} 3.0',
        'sps2_http_requests_total{code="404",method="GET",route="other"} 2.0',
        'sps2_http_requests_total{code="405",method="GET",route="/v1/completions"} 1.0',
        'sps2_http_requests_total{code="405",method="other",route="/health"} 1.0',
        'sps2_http_request_duration_seconds_count{route="/v1/completions"} 5.0',
        "sps2_ready 1.0",
    ):
        assert line in lines, line
    assert "_created" not in answer.text
    build = next(line for line in lines if line.startswith("sps2_build_info{"))
    assert 'model="tiny"' in build
    assert f'version="{version("sps2")}"' in build


async def test_documents_every_parameter(http):
    document = (await http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    refs = set()

    def walk(node):
        if isinstance(node, dict):
            refs.update([node["$ref"]] if "$ref" in node else [])
            for each in node.values():
                walk(each)
        elif isinstance(node, list):
            for each in node:
                walk(each)

    walk(document)
    assert {ref.rpartition("/")[2] for ref in refs} <= set(schemas)
    assert "min_p" in schemas["CompletionRequest"]["properties"]
    chat = document["paths"][CHAT]["post"]
    example = chat["requestBody"]["content"]["application/json"]["example"]
    assert (await http.post(CHAT, json=example)).status_code == 200
    assert {"200", "400", "404", "429", "503"} <= set(chat["responses"])
    assert "401" not in chat["responses"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
    assert "404" in document["paths"]["/v1/models/{model}"]["get"]["responses"]
    assert (await http.get("/docs")).status_code == 200
    assert (await http.get("/version")).json()["version"]


async def test_garbage_on_the_port_does_no_harm(http, door):
    host, port = door.url.removeprefix("http://").split(":")
    for garbage in (
        b"\x00" * 5000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\n",
    ):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    assert (await http.get("/health")).status_code == 200
