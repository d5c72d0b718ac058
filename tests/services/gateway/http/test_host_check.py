"""Without keys, pages of other sites cannot use the gateway through somebody's browser."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from ..conftest import Door

COMPLETIONS = "/v1/completions"
JSON, TEXT = "application/json", "text/plain;charset=UTF-8"
FORM, UPLOAD = "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"
BODY = b'{"prompt": "x"}'


async def get(door: Door, path: str, host: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        return await http.get(path, headers={"host": host})


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "a.localhost", "127.0.0.1:80", "[::1]:8000", "10.1.2.3"]
)
async def test_addresses_and_localhost_are_answered(door: Door, host: str) -> None:
    assert (await get(door, "/v1/models", host)).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[x"]
)
async def test_a_name_of_somebody_else_is_not(door: Door, host: str) -> None:
    for path in ("/v1/models", "/metrics", "/docs", "/nothing"):
        refused = await get(door, path, host)
        assert refused.status_code == 421
        assert "allowed_hosts" in refused.json()["error"]["message"]
    assert (await get(door, "/health", host)).status_code == 200, "probes use any name"


async def test_a_name_may_be_allowed(open_door: Callable[..., Any]) -> None:
    async with open_door(allowed_hosts=("LLM.example",)) as door:
        assert (await get(door, "/v1/models", "llm.example:443")).status_code == 200
        assert (await get(door, "/v1/models", "evil.example")).status_code == 421
    async with open_door(allowed_hosts=("*",)) as door:
        assert (await get(door, "/v1/models", "evil.example")).status_code == 200


@pytest.mark.parametrize(
    ("kind", "origin", "status"),
    [
        (TEXT, "http://evil.example", 403),
        ("", "http://evil.example", 403),
        (FORM, "null", 403),
        (FORM, "http://6.6.6.6", 403),  # anybody has an address
        ("", "http://6.6.6.6", 403),
        ("", "http://localhost:3000", 200),
        ("", "http://127.0.0.1:3000", 200),
        (TEXT, "http://localhost:3000", 415),
        (FORM, "http://127.0.0.1", 415),
        (JSON, "http://evil.example", 200),  # only after a preflight, which is not granted
        ("Application/JSON; charset=utf-8", None, 200),
        ("", None, 200),
        (TEXT, None, 415),
        (UPLOAD, None, 415),
        ("application/xml", None, 415),
        (FORM, None, 200),  # curl -d
    ],
)
async def test_what_a_browser_posts_unasked(
    door: Door, kind: str, origin: str | None, status: int
) -> None:
    headers = {"content-type": kind} | ({"origin": origin} if origin else {})
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        answer = await http.post(COMPLETIONS, content=BODY, headers=headers)
    assert answer.status_code == status, answer.text
    if status == 415:
        error = answer.json()["error"]
        assert error["code"] == "unsupported_media_type"
        assert "send application/json" in error["message"]


async def test_a_form_of_a_browser_that_hides_its_origin_is_refused(door: Door) -> None:
    headers = {"content-type": FORM, "sec-fetch-site": "cross-site"}
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        assert (await http.post(COMPLETIONS, content=BODY, headers=headers)).status_code == 415
