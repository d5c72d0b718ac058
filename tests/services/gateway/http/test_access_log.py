"""What an operator sees of requests, refused ones above all: lines, traces, HEAD as GET."""

import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from sps2.common.messages import ListTraces

from ..conftest import Door

COMPLETIONS = "/v1/completions"
LOGGER = "sps2.services.gateway.http.access_log"


async def visit(door: Door) -> None:
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        await http.post(COMPLETIONS, json={"prompt": "x"})
        await http.post(COMPLETIONS, json={"prompt": "x", "speed": 1})
        await http.get("/v1/a%0Ab?secret=1")
        await http.get("/health")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == LOGGER]


@pytest.mark.parametrize(("logged", "codes"), [("all", 4), ("refused", 2), ("none", 0)])
async def test_requests_have_lines(
    open_door: Callable[..., Any], caplog: pytest.LogCaptureFixture, logged: str, codes: int
) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        async with open_door(access_log=logged) as door:
            await visit(door)
    found = lines(caplog)
    assert len(found) == codes
    if codes == 2:
        assert found[0].startswith(f"POST {COMPLETIONS} 400 in ")
        assert "`speed`" in found[0]
        assert found[1].startswith("GET /v1/a%0Ab 404 in "), "as it came, and no query"
        fields = next(each for each in caplog.records if each.name == LOGGER).__dict__["fields"]
        assert (fields["code"], fields["method"], fields["path"]) == (400, "POST", COMPLETIONS)


async def test_what_is_refused_has_a_trace(door: Door) -> None:
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        refused = await http.post(
            COMPLETIONS, content=b'{"prompt": "x", "speed": 1}', headers={"x-request-id": "mine"}
        )
    assert refused.status_code == 400
    async with door.client() as client:
        (trace,) = (await client._peer.call(ListTraces(), 60.0)).traces
    assert trace.asked_as == "mine"
    assert "speed" in trace.error


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/v1/models", "/metrics"])
async def test_head_is_get_without_a_body(door: Door, path: str) -> None:
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        answer = await http.head(path)
        assert answer.status_code == 200
        assert answer.content == b""
        assert (await http.head(COMPLETIONS)).status_code == 405
        assert (await http.get("/health")).status_code == 200, "the connection is in order"


async def test_models_with_a_slash_is_the_list(door: Door) -> None:
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        assert (await http.get("/v1/models/")).json() == (await http.get("/v1/models")).json()
