"""The server's other routes: scoring, tokens, metrics, the description of the API."""

import asyncio
import json
from importlib.metadata import version

from .asked import CHAT, COMPLETIONS, HI


async def test_scores_a_prompt(http, door):
    body = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 1}
    answer = (await http.post(COMPLETIONS, json=body)).json()
    choice = answer["choices"][0]
    assert choice["text"] == "abc"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [None, -0.5, -0.5],
        "top_logprobs": [None, {"A": -0.25, "b": -0.5}, {"A": -0.25, "c": -0.5}],
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
