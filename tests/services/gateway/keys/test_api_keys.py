"""API keys at the gateway: which are good, what is said of the others, and their quotas."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import openai
import pytest

from sps2.common.client import AsyncClient
from sps2.common.config import Bus
from sps2.common.keys.keyring import Keyring
from sps2.services.gateway.http.problems import Unauthorised
from sps2.services.gateway.keys.api_keys import Register

from ..conftest import Door, opened

COMPLETIONS = "/v1/completions"


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    made = Keyring(tmp_path / "keys")
    made.make("test")
    return made


@asynccontextmanager
async def keyed(folder: Path, ring: Keyring) -> AsyncIterator[tuple[Door, httpx.AsyncClient]]:
    bus = Bus(heartbeat_s=0.2, keys=str(ring.folder))
    async with (
        opened(folder, bus=bus) as door,
        httpx.AsyncClient(base_url=door.url, timeout=60) as http,
    ):
        yield door, http


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_every_way_not_to_have_a_key(folder: Path, ring: Keyring) -> None:
    good = ring.add_api_key("good")
    past = datetime.now(UTC) - timedelta(hours=1)
    expired = ring.add_api_key("old", past)
    revoked = ring.add_api_key("gone")
    ring.revoke_api_key("gone")
    ways = [
        ({}, "missing_api_key", "Authorization: Bearer"),
        ({"authorization": "Basic eHl6"}, "missing_api_key", "Authorization: Bearer"),
        ({"authorization": "Bearer"}, "missing_api_key", "Authorization: Bearer"),
        (bearer("sk-sps2-guess"), "invalid_api_key", "not known"),
        (bearer(good[:-1]), "invalid_api_key", "not known"),
        (bearer(expired), "expired_api_key", "API key old expired at"),
        (bearer(revoked), "revoked_api_key", "API key gone was revoked at"),
    ]
    async with keyed(folder, ring) as (door, http):
        for headers, code, told in ways:
            for path in (COMPLETIONS, "/metrics", "/v1/models", "/nothing"):
                method = "POST" if path == COMPLETIONS else "GET"
                answer = await http.request(method, path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "x-request-id" in answer.headers
                error = answer.json()["error"]
                assert error["code"] == code
                assert error["type"] == "invalid_request_error"
                assert told in error["message"]
        assert not door.play.submitted
        for path in ("/health", "/ready", "/docs", "/openapi.json"):
            assert (await http.get(path)).status_code == 200
        assert (await http.get("/metrics", headers=bearer(good))).status_code == 200
        answer = await http.post(COMPLETIONS, json={"prompt": "x"}, headers=bearer(good))
        assert answer.status_code == 200
        document = (await http.get("/openapi.json")).json()
        assert document["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
        chat = document["paths"]["/v1/chat/completions"]["post"]
        assert chat["security"] == [{"apiKey": []}]
        assert "401" in chat["responses"]
        assert "security" not in document["paths"]["/health"]["get"]


async def test_openais_client_has_its_errors(folder: Path, ring: Keyring) -> None:
    key = ring.add_api_key("one", requests_per_minute=1)
    async with keyed(folder, ring) as (door, _):
        url = f"{door.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.completions.create(model="tiny", prompt="x")
        async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            await client.completions.create(model="tiny", prompt="x")
            with pytest.raises(openai.RateLimitError):
                await client.completions.create(model="tiny", prompt="x")


async def test_keys_change_while_it_runs(folder: Path, ring: Keyring) -> None:
    async with keyed(folder, ring) as (_, http):

        async def status(key: str) -> int:
            return (await http.get("/v1/models", headers=bearer(key))).status_code

        late = ring.add_api_key("late")
        assert await status(late) == 200
        ring.api.write_text("{")  # somebody edits it
        assert await status(late) == 200
        ring.api.unlink()
        assert await status(late) == 401
        again = ring.add_api_key("late")
        assert [await status(late), await status(again)] == [401, 200]
        ring.revoke_api_key("late")
        assert await status(again) == 401


async def test_quotas_are_told_and_kept(folder: Path, ring: Keyring) -> None:
    few = bearer(ring.add_api_key("few", requests_per_minute=2))
    short = bearer(ring.add_api_key("short", tokens_per_minute=60))
    async with keyed(folder, ring) as (door, http):
        left = []
        for _ in range(2):
            answer = await http.post(COMPLETIONS, json={"prompt": "x"}, headers=few)
            assert answer.status_code == 200
            left.append(answer.headers["x-ratelimit-remaining-requests"])
        assert left == ["1", "0"]
        answer = await http.post(COMPLETIONS, json={"prompt": "x"}, headers=few)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert (await http.get("/v1/models", headers=few)).status_code == 200

        asked = {"prompt": "x" * 10, "max_tokens": 40}
        door.play.answer = lambda prompt: "y" * 30
        whole = await http.post(COMPLETIONS, json=asked, headers=short)
        assert whole.status_code == 200
        used = whole.json()["usage"]["total_tokens"]
        streamed = await http.post(COMPLETIONS, json=asked | {"stream": True}, headers=short)
        assert streamed.status_code == 429
        assert int(streamed.headers["retry-after"]) <= 50 - (60 - used) + 1
        assert int(streamed.headers["x-ratelimit-remaining-tokens"]) >= 60 - used
        too_much = await http.post(COMPLETIONS, json=asked | {"max_tokens": 60}, headers=short)
        assert too_much.status_code == 400
        assert "60 a minute" in too_much.json()["error"]["message"]
        assert len(door.play.submitted) == 3


async def test_quotas_are_not_for_the_bus(folder: Path, ring: Keyring, tmp_path: Path) -> None:
    ring.add_client("alice", tmp_path / "alice.key")
    async with (
        keyed(folder, ring) as (door, _),
        AsyncClient(door.bus, Bus(keys=str(tmp_path / "alice.key"))) as alice,
    ):
        assert (await alice.complete("x")).choices[0].text == "Hello, world."


def test_a_key_expires_to_the_second(ring: Keyring) -> None:
    clock = datetime(2027, 1, 31, 12, tzinfo=UTC)
    key = ring.add_api_key("short", clock)
    now = [clock.timestamp() - 1]
    register = Register(ring.api, lambda: now[0])
    assert register.account(f"Bearer {key}").name == "short"
    now[0] += 1
    with pytest.raises(Unauthorised, match=r"2027-01-31T12:00:00\+00:00") as refused:
        register.account(f"Bearer {key}")
    assert refused.value.code == "expired_api_key"


def test_a_key_is_kept_nowhere(ring: Keyring) -> None:
    key = ring.add_api_key("one")
    assert key.startswith("sk-sps2-")
    assert all(key[8:].encode() not in path.read_bytes() for path in ring.folder.iterdir())
