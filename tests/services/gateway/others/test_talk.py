"""What gateways tell each other: quotas hold for all together, and turns are remembered by all."""

import httpx
import pytest

from sps2.common.config import Bus
from sps2.common.keys.keyring import Keyring
from sps2.services.gateway.others.talk import Overhear, Turn, Used

from ....waiting import until
from ..conftest import several_opened

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def ring(tmp_path):
    made = Keyring(tmp_path / "keys")
    made.make("test")
    return made


async def test_a_quota_holds_for_all_gateways(folder, ring):
    key = ring.add_api_key("alice", requests_per_minute=3, tokens_per_minute=1000)
    headers = {"authorization": f"Bearer {key}"}
    async with (
        several_opened(folder, 2, bus=Bus(heartbeat_s=0.2, keys=str(ring.folder))) as doors,
        httpx.AsyncClient(base_url=doors[0].url, timeout=60, headers=headers) as first,
        httpx.AsyncClient(base_url=doors[1].url, timeout=60, headers=headers) as second,
    ):
        here, there = (door.parts._talk for door in doors)
        await until(lambda: here._listeners and there._listeners)
        asked = {"prompt": "x", "max_tokens": 100}
        for client in (first, second, first):
            answer = await client.post("/v1/completions", json=asked)
            assert answer.status_code == 200
        for talk in (here, there):
            account = talk._register.named("alice")
            await until(lambda account=account: account.used()[0] > 2)
            # three answers of 14 tokens to prompts of one; what was reserved was given back
            await until(lambda account=account: 0 < account.used()[1] <= 45)
        refused = await second.post("/v1/completions", json=asked)
        assert refused.status_code == 429
        begun = there.overhear(Overhear(turns=False))
        used = await anext(begun)
        assert isinstance(used, Used)
        assert used.key == "alice"
        assert used.requests > 2
        await begun.aclose()


async def test_turns_are_remembered_by_all(clients, doors):
    first, _ = clients
    here, there = (door.parts for door in doors)
    await until(lambda: here._talk._listeners)
    await first.post("/v1/chat/completions", json=CHAT)
    await until(lambda: len(there.gateway.turns))
    assert there.gateway.turns.turns() == here.gateway.turns.turns()
    begun = there._talk.overhear(Overhear(turns=True))
    assert isinstance(await anext(begun), Turn), "a gateway that starts is told them"
    await begun.aclose()
