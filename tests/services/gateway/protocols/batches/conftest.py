import pytest

from sps2.services.gateway.protocols.batches import runner

from .asked import client_of


@pytest.fixture
async def client(door):
    async with client_of(door) as client:
        yield client


@pytest.fixture
def quick(monkeypatch):
    """Requests are tried again at once."""
    monkeypatch.setattr(runner, "WAIT_S", 0.01)
    monkeypatch.setattr(runner, "LOST_S", 0.01)
