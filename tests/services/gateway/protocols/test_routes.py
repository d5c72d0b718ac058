"""The document, the metrics and cancelling treat every protocol's routes alike."""

import asyncio

import httpx

from sps2.common.api.answer_ids import name_in

from ....waiting import until

HI = [{"role": "user", "content": "Hi"}]


async def test_the_document_describes_their_types(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        document = (await http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    operation = document["paths"]["/v1/messages"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert body.endswith("/AnthropicMessagesRequest")
    assert "max_tokens" in schemas["AnthropicMessagesRequest"]["required"]
    assert "messages" in schemas["ChatRequest"]["required"]
    error = operation["responses"]["400"]["content"]["application/json"]["schema"]["$ref"]
    assert error.endswith("/AnthropicErrorBody")
    assert set(document["paths"]["/v1/responses/{response_id}"]) == {"get", "delete"}

    def references(value):
        if isinstance(value, dict):
            yield from [value["$ref"]] if "$ref" in value else []
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                yield from references(each)

    for each in references(document):
        assert each.removeprefix("#/components/schemas/") in schemas


async def test_metrics_count_by_route(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        made = await http.post("/v1/responses", json={"input": "Hi"})
        await http.get(f"/v1/responses/{made.json()['id']}")
        await http.post("/v1/messages", json={"max_tokens": 4, "messages": HI})
        page = (await http.get("/metrics")).text
    for route in ("/v1/responses", "/v1/responses/{response_id}", "/v1/messages"):
        assert f'route="{route}"' in page


async def test_answers_are_cancelled_by_their_ids(door):
    door.play.gates["token 3"] = asyncio.Event()
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        headers = {"x-request-id": "mine"}
        body = {"max_tokens": 50, "messages": HI}
        asked = asyncio.create_task(http.post("/v1/messages", json=body, headers=headers))
        await until(lambda: door.play.follows)
        name = door.play.submitted[0].request[:12]
        door.parts.gateway.running.cancel(f"msg_{name}")
        answer = await asked
    assert answer.status_code == 499
    assert answer.json()["request_id"] == "mine"


def test_names_in_ids():
    for prefix in ("msg_", "resp_", "chatcmpl-", "cmpl-", ""):
        assert name_in(f"{prefix}0123456789ab") == "0123456789ab"
        assert name_in(f"{prefix}0123456789ab0001") == "0123456789ab"
