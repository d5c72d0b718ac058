"""Processes of a cluster are drained and restarted while it serves, and no request fails."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from sps2.common import config
from sps2.common.client import AsyncClient

from ..chaos import load
from ..chaos.rolling import failed, spsctl, under_load
from .conftest import Launch, Running
from .joining import states
from .test_cluster import prompt_of, said

GATEWAYS = {"processes": 2}
LONG: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "logprobs": 0, "temperature": 0}


@pytest.fixture(scope="module")
def cluster(launch: Launch) -> Iterator[Running]:
    with launch("smollm2", "tcp", gateway=GATEWAYS) as running:
        yield running


async def test_a_drained_shard_hands_over_and_stays_drained(cluster: Running) -> None:
    prompt = prompt_of(40)
    async with AsyncClient(cluster.bus) as client:
        calm = said(await client.complete(prompt, cache_salt="calm", **LONG))
        stream = client.complete_stream(prompt, cache_salt="drained", **LONG)
        tokens = said(await anext(stream))
        (request,) = (await client.status()).requests
        other = {"decode-0": "decode-1", "decode-1": "decode-0"}[request.owner]
        status, output = await spsctl("drain", request.owner, "--timeout", "0")
        assert (status, f"{request.owner} is drained" in output) == (0, True), output
        async for chunk in stream:
            tokens += said(chunk) if chunk.choices else []
        assert tokens == calm
        assert states(await client.status())[request.owner] == "drained"

        status, output = await spsctl("drain", other)
        assert status == 1
        assert output.startswith(f"error: without {other} no shard would decode; to restart it")
        assert (await spsctl("restart", "scheduler"))[0] == 0
        assert states(await client.status())[request.owner] == "drained"
        again = await client.complete(prompt, cache_salt="again", **LONG)
        assert said(again) == calm
        assert (await spsctl("drain", request.owner, "--undo"))[0] == 0
        assert states(await client.status())[request.owner] == "ready"


async def test_a_rolling_restart_fails_no_request(cluster: Running) -> None:
    """Of all processes: gateways, shards, scheduler and directory."""
    port = urlsplit(cluster.url).port
    addresses = config.load(port=port, gateway=GATEWAYS).gateway_addresses
    async with AsyncClient(addresses) as client:
        before = {each.service: each.pid for each in (await client.status()).services}
        bank = await load.known(client, 8)
        status, output, seen = await under_load(
            addresses, cluster.url, bank, 1.0, lambda: spsctl("restart")
        )
        assert status == 0, output
        assert failed(seen) == []
        after = await client.status()
        assert {each.service: each.pid for each in after.services}.keys() == before.keys()
        same = [each.service for each in after.services if each.pid == before[each.service]]
        assert same == [], output
        assert (after.ready, after.missing, after.leaked_pages) == (True, "", 0)
