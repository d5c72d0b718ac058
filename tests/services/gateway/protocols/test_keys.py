"""API keys: Anthropic's header, errors in each protocol's form, and whose responses are whose."""

from typing import Any

import anthropic
import httpx
import pytest
from anthropic import AsyncAnthropic

from sps2.common.config import Bus
from sps2.common.keys.keyring import Keyring

from ..conftest import opened

HI = [{"role": "user", "content": "Hi"}]
ASKED: Any = {"model": "tiny", "max_tokens": 4, "messages": HI}


@pytest.fixture
def ring(tmp_path):
    made = Keyring(tmp_path / "keys")
    made.make("test")
    return made


@pytest.fixture
async def door(folder, ring):
    async with opened(folder, bus=Bus(heartbeat_s=0.2, keys=str(ring.folder))) as door:
        yield door


async def test_either_header_has_the_key(door, ring):
    key = ring.add_api_key("good")
    for how in ({"api_key": key}, {"auth_token": key}):
        async with AsyncAnthropic(base_url=door.url, max_retries=0, **how) as client:
            assert (await client.messages.create(**ASKED)).content[0].text == "Hell"
    async with AsyncAnthropic(base_url=door.url, max_retries=0, api_key="guess") as client:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await client.messages.create(**ASKED)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")


async def test_a_response_is_its_keys_alone(door, ring):
    alice, bob = ({"authorization": f"Bearer {ring.add_api_key(name)}"} for name in ("a", "b"))
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        made = await http.post("/v1/responses", json={"input": "Hi"}, headers=alice)
        path = f"/v1/responses/{made.json()['id']}"
        item = made.json()["output"][0]["id"]
        for method, where in (
            ("GET", path),
            ("GET", f"{path}/input_items"),
            ("POST", f"{path}/cancel"),
            ("DELETE", path),
        ):
            answer = await http.request(method, where, headers=bob)
            assert answer.status_code == 404, where
            assert answer.json()["error"]["code"] == "response_not_found"
        for body in (
            {"input": "x", "previous_response_id": made.json()["id"]},
            {"input": [{"type": "item_reference", "id": item}]},
        ):
            answer = await http.post("/v1/responses", json=body, headers=bob)
            assert answer.status_code == 404
            assert (await http.post("/v1/responses", json=body, headers=alice)).status_code == 200
        assert (await http.get(path, headers=alice)).status_code == 200
        assert (await http.get(path)).status_code == 401
