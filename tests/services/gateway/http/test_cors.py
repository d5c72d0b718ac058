"""Pages of other sites, where `gateway.cors_origins` names them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from sps2.common.config import Bus, Gateway
from sps2.common.keys.keyring import Keyring

from ..conftest import Door, opened

CHAT = "https://chat.example"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}
ALLOWED = "access-control-allow-origin"


async def preflight(door: Door, origin: str, path: str = "/v1/chat/completions") -> httpx.Response:
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        return await http.options(path, headers={"origin": origin} | PREFLIGHT)


async def test_no_site_may_unless_configured(door: Door) -> None:
    answer = await preflight(door, CHAT)
    assert answer.status_code == 405
    assert ALLOWED not in answer.headers


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files", "/api/chat"])
async def test_a_named_site_may(open_door: Callable[..., Any], path: str) -> None:
    async with open_door(cors_origins=(CHAT,)) as door:
        granted = await preflight(door, CHAT, path)
        assert granted.status_code == 200
        assert granted.headers[ALLOWED] == CHAT
        assert "POST" in granted.headers["access-control-allow-methods"]
        named = granted.headers["access-control-allow-headers"]
        assert named == PREFLIGHT["access-control-request-headers"]
        assert ALLOWED not in (await preflight(door, "https://evil.example", path)).headers


async def test_its_pages_may_read_the_answers(open_door: Callable[..., Any]) -> None:
    async with (
        open_door(cors_origins=(CHAT,)) as door,
        httpx.AsyncClient(base_url=door.url, headers={"origin": CHAT}, timeout=60) as http,
    ):
        for answer in (
            await http.post("/v1/completions", json={"prompt": "x"}),
            await http.post("/v1/completions", json={"prompt": 1}),
            await http.get("/v1/models"),
            await http.head("/v1/models"),
            await http.get("/nothing"),
        ):
            assert answer.headers[ALLOWED] == CHAT
            assert answer.headers["access-control-expose-headers"] == "*"
            assert "x-request-id" in answer.headers
            assert "access-control-allow-credentials" not in answer.headers
        # without a preflight, too
        assert (await http.post("/v1/completions", content=b'{"prompt": "x"}')).status_code == 200


async def test_any_site_may(open_door: Callable[..., Any]) -> None:
    async with open_door(cors_origins=("*",)) as door:
        assert (await preflight(door, "https://whoever.example")).headers[ALLOWED] == "*"
        async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
            answer = await http.get("/v1/models", headers={"host": "evil.example", "origin": CHAT})
        assert answer.status_code == 421, "names of the gateway are another matter"


async def test_a_preflight_needs_no_key_but_the_request_does(folder: Path, tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys")
    ring.make("test")
    bus = Bus(heartbeat_s=0.2, keys=str(ring.folder))
    async with opened(folder, bus=bus, gateway=Gateway(cors_origins=(CHAT,))) as door:
        assert (await preflight(door, CHAT)).status_code == 200
        async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
            refused = await http.post(
                "/v1/completions", json={"prompt": "x"}, headers={"origin": CHAT}
            )
        assert refused.status_code == 401
        assert refused.headers[ALLOWED] == CHAT, "so that the page can read why"


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/", "ftp://x", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="give scheme and host"):
        Gateway(cors_origins=(origin,))
