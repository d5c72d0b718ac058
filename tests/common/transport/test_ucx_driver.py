import asyncio
from collections import Counter

import pytest

from sps2.common.transport.ucx_driver import Driver


async def test_buffers_stay_with_the_driver_until_their_request_completes() -> None:
    counters: Counter[str] = Counter()
    near, far = Driver("127.0.0.1", counters), Driver("127.0.0.1", counters)
    there, back = near.connect(far.address, lambda: None), far.connect(near.address, lambda: None)
    outcomes: asyncio.Queue[str] = asyncio.Queue()
    memory = memoryview(bytearray(64 << 20))
    assert not back.recv(memory, 7, outcomes.put_nowait)
    sent = bytes(64 << 20)
    there.send(sent, 7, lambda error: None)
    await asyncio.sleep(0.005)  # midway
    back.close()
    assert far.pending == 1
    async with asyncio.timeout(60):
        outcome = await outcomes.get()
    assert outcome != "" or bytes(memory) == sent
    assert far.pending == 0
    there.close()
    await near.close()
    await far.close()


async def test_a_closed_endpoint_completes_its_requests_and_refuses_more() -> None:
    counters: Counter[str] = Counter()
    near, far = Driver("127.0.0.1", counters), Driver("127.0.0.1", counters)
    there, back = near.connect(far.address, lambda: None), far.connect(near.address, lambda: None)
    outcomes: asyncio.Queue[str] = asyncio.Queue()
    there.recv(memoryview(bytearray(10)), 1, outcomes.put_nowait)
    back.send(b"0123456789", 1, lambda error: None)
    async with asyncio.timeout(60):
        assert await outcomes.get() == ""
        there.recv(memoryview(bytearray(10)), 1, outcomes.put_nowait)
        there.close()
        assert "Cancel" in await outcomes.get()
    with pytest.raises(ConnectionError):
        there.send(b"x", 1, lambda error: None)
    back.close()
    await near.close()
    await far.close()


@pytest.mark.parametrize("address", [b"", b"x", bytes(200), b"\xff" * 60])
async def test_malformed_worker_addresses(address: bytes) -> None:
    driver = Driver("127.0.0.1", Counter())
    with pytest.raises(ConnectionError):
        driver.connect(address, lambda: None)
    await driver.close()
