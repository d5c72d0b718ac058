"""Two gateways in front of one cluster, each with an HTTP port of its own."""

import httpx
import pytest

from sps2.services.gateway.others import gateways

from ..conftest import several_opened


@pytest.fixture
async def doors(folder, monkeypatch):
    monkeypatch.setattr(gateways, "DEADLINE_S", 60.0)  # on however busy a machine
    monkeypatch.setattr(gateways, "CONNECT_S", 60.0)
    async with several_opened(folder, 2) as doors:
        yield doors


@pytest.fixture
async def clients(doors):
    async with (
        httpx.AsyncClient(base_url=doors[0].url, timeout=60) as first,
        httpx.AsyncClient(base_url=doors[1].url, timeout=60) as second,
    ):
        yield first, second
