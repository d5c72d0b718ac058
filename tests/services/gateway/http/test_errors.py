"""What is wrong with a request is told by status, field and code."""

import asyncio

import httpx

from sps2.common.errors import Internal, PeerLost, Refused, Unsound

from ....waiting import until
from .asked import CHAT, COMPLETIONS, HI

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
    (COMPLETIONS, {"prompt": "x", "sps2": {"kv_transfer_dtype": 8}}, "sps2.kv_transfer_dtype"),
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
