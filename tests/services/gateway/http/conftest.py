"""An HTTP client of a gateway's server."""

import httpx
import pytest


@pytest.fixture
async def http(door):
    async with httpx.AsyncClient(base_url=door.url, timeout=60) as http:
        yield http
