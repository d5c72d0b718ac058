"""A host is cut off for ten seconds while requests run, and comes back: nothing is lost or hangs.

    python -m pytest -s tests/e2e/link_cut.py

Not a part of `make test` for its length. Four hosts as in test_several_hosts.py; the one that is
cut off has a prefill shard and a decode shard. Four callers ask again and again. None may get an
error, every answer must be that of one host, some must come during the cut, and once the link is
back all shards must be, without a restart.
"""

import asyncio
import json
import time
from pathlib import Path

import pytest

from sps2.common.client import AsyncClient
from sps2.common.config import Bus
from sps2.common.messages import ClusterStatus

from .conftest import Launch
from .several_hosts import Machines
from .test_cluster import prompt_of, said
from .test_several_hosts import GATEWAY, hosts, model, spread  # noqa: F401

BEFORE_S, CUT_S, AFTER_S = 5.0, 10.0, 10.0
CALLERS = 4
LOADS = {"prefill": (500, 2), "decode": (60, 100)}
"""Tokens of prompt and answer: nearly all of the time goes into that stage."""


async def ask(client: AsyncClient, load: str) -> list[str]:
    length, tokens = LOADS[load]
    asked = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    return said(await client.complete(prompt_of(length), **asked))


async def under_cut(machines: Machines, bus: Bus, load: str, wanted: list[str]) -> None:
    since_s = time.monotonic()
    ended: list[float] = []
    done = asyncio.Event()

    def at() -> float:
        return time.monotonic() - since_s - BEFORE_S

    async def call(client: AsyncClient) -> None:
        while not done.is_set():
            assert await ask(client, load) == wanted
            ended.append(at())

    async with AsyncClient(GATEWAY, bus) as client:
        before = await client.status()
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(call(client))
            await asyncio.sleep(BEFORE_S)
            machines.network.cut("gamma")
            try:
                await asyncio.sleep(CUT_S)
                cut_off = await client.status()
            finally:
                machines.network.restore("gamma")
            while (status := await client.status()).missing or not status.ready:
                await asyncio.sleep(0.1)
            back_s = at() - CUT_S
            await asyncio.sleep(AFTER_S)
            done.set()
        after = await released(client)
    during = [when for when in ended if 0 < when < CUT_S]
    print(
        f"\n{load}: {len(ended)} answers, {len(during)} during the cut, the longest pause "
        f"{max(b - a for a, b in zip([-BEFORE_S, *ended], ended, strict=False)):.1f} s; "
        f"all shards back {back_s:.1f} s after the link"
    )
    assert {each.id for each in cut_off.shards if each.state == "lost"} == {"prefill-1", "decode-0"}
    assert during
    assert pids(after) == pids(before)
    assert not after.leaked_pages


async def released(client: AsyncClient) -> ClusterStatus:
    async with asyncio.timeout(60):
        while (status := await client.status()).leases or status.requests:
            await asyncio.sleep(0.1)
    return status


def pids(status: ClusterStatus) -> dict[str, int]:
    return {each.service: each.pid for each in status.services}


@pytest.mark.parametrize("transport", ["tcp", "ucx"])
def test_a_cut_is_survived(
    launch: Launch,
    hosts: Machines,  # noqa: F811
    model: Path,  # noqa: F811
    transport: str,
) -> None:
    async def alone(bus: str) -> dict[str, list[str]]:
        async with AsyncClient(bus) as client:
            return {load: await ask(client, load) for load in LOADS}

    with launch("smollm2", "tcp") as running:
        wanted = asyncio.run(alone(running.bus))
    with spread(hosts, model, transport) as bus:
        shards = json.loads(hosts.spsctl("status", "--json").stdout)["shards"]
        assert {each["transport"] for each in shards} == {transport}
        for load, answer in wanted.items():
            asyncio.run(asyncio.wait_for(under_cut(hosts, bus, load, answer), 240))
