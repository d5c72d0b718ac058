"""Several gateways behind one address: one may die or be stopped while the others answer."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import aclosing
from urllib.parse import urlsplit

import httpx
import pytest

from sps2.cli.runs import RunFolder
from sps2.common.client import AsyncClient
from sps2.common.config import load
from sps2.services.gateway.names import number_in

from .conftest import Launch, Running
from .test_cluster import prompt_of, released

TOKENS = 1500
ASKED = {
    "prompt": prompt_of(20),
    "max_tokens": TOKENS,
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
}


@pytest.fixture(scope="module")
def cluster(launch: Launch) -> Iterator[Running]:
    with launch("long", "tcp", mixed=1, gateway={"processes": 2}) as running:
        yield running


def client_of(cluster: Running) -> httpx.AsyncClient:
    """A client with one connection; the system chooses its gateway."""
    return httpx.AsyncClient(base_url=cluster.url, timeout=None)


def pid_of(cluster: Running, service: str) -> int:
    state = RunFolder(f"long-{urlsplit(cluster.url).port}").state()
    assert state is not None
    return state.services[service].pid


class Stream:
    """An answer that is read as it comes."""

    def __init__(self, cluster: Running) -> None:
        self._cluster = cluster
        self._begun = asyncio.Event()
        self.number = -1
        """Of its gateway."""
        self.said = asyncio.create_task(self._read())
        """All of its events, but for what differs from answer to answer."""

    async def begun(self) -> None:
        """Wait for its first token."""
        await self._begun.wait()

    async def _read(self) -> str:
        said = []
        async with (
            client_of(self._cluster) as client,
            client.stream("POST", "/v1/completions", json=ASKED) as answer,
        ):
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    self.number = number_in(line.partition('"id":"')[2].partition('"')[0])
                    said.append(line.partition('"choices":')[2])
                    self._begun.set()
        return "".join(said)


async def streams(cluster: Running) -> list[Stream]:
    """Streams that have begun, at both gateways."""
    made = list[Stream]()
    while {each.number for each in made} != {0, 1}:
        made.append(Stream(cluster))
        await made[-1].begun()
    return made


async def answered_by(cluster: Running) -> int:
    """The number of the gateway that answers a new client."""
    async with client_of(cluster) as client:
        answer = await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        assert answer.status_code == 200, answer.text
        return number_in(answer.json()["id"])


async def back(cluster: Running, service: str, before: int) -> None:
    """Wait until both gateways answer after one of them was started again."""
    while pid_of(cluster, service) in (0, before):
        await asyncio.sleep(0.05)
    found = set[int]()
    while found != {0, 1}:
        found.add(await answered_by(cluster))


async def test_one_dies_and_the_others_go_on(cluster: Running) -> None:
    alone = await Stream(cluster).said
    running = await streams(cluster)
    killed = pid_of(cluster, "gateway.1")
    os.kill(killed, signal.SIGKILL)
    for stream in running:
        if stream.number == 1:
            with pytest.raises(httpx.TransportError):
                await stream.said
    for _ in range(10):
        await answered_by(cluster)  # at once, whichever answers
    for stream in running:
        if stream.number == 0:
            assert await stream.said == alone
    await back(cluster, "gateway.1", killed)


async def test_one_after_the_other_is_stopped_under_load(cluster: Running) -> None:
    alone = await Stream(cluster).said
    for service in ("gateway", "gateway.1"):
        running = await streams(cluster)
        stopped = pid_of(cluster, service)
        os.kill(stopped, signal.SIGTERM)
        await back(cluster, service, stopped)
        for stream in running:
            assert await stream.said == alone


async def at(cluster: Running, number: int) -> httpx.AsyncClient:
    """A client of one of the gateways."""
    while True:
        client = client_of(cluster)
        answer = await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        if number_in(answer.json()["id"]) == number:
            return client
        await client.aclose()


async def test_what_one_runs_that_stands_still_is_not_run_again(cluster: Running) -> None:
    path, key = "/v1/completions", {"idempotency-key": "still"}
    async with aclosing(await at(cluster, 0)) as here, aclosing(await at(cluster, 1)) as there:
        async with there.stream("POST", path, json=ASKED, headers=key) as answer:
            lines = [line async for line in answer.aiter_lines() if line.startswith("id: ")]
        place = {"last-event-id": lines[0].removeprefix("id: ")}
        stopped = pid_of(cluster, "gateway.1")
        os.kill(stopped, signal.SIGSTOP)
        try:
            for more in (dict[str, str](), place):
                silent = await here.post(path, json=ASKED, headers=key | more)
                assert (silent.status_code, silent.json()["error"]["code"]) == (503, "peer_lost")
        finally:
            os.kill(stopped, signal.SIGCONT)
        while True:
            again = await here.post(path, json=ASKED, headers=key)
            if again.status_code != 503:
                break
            await asyncio.sleep(0.1)
        assert again.text.count("id: ") == len(lines)
        assert lines[-1] in again.text, "it is the same answer"


async def test_what_one_has_is_reached_through_the_other(cluster: Running) -> None:
    async with client_of(cluster) as client:
        answer = await client.post("/v1/responses", json={"input": "x", "max_output_tokens": 4})
        name = answer.json()["id"]
    for _ in range(8):
        async with client_of(cluster) as client:
            assert (await client.get(f"/v1/responses/{name}")).status_code == 200


async def test_the_sdk_finds_the_gateway_that_is_there(cluster: Running) -> None:
    port = urlsplit(cluster.url).port
    addresses = load(port=port, gateway={"processes": 2}).gateway_addresses
    async with AsyncClient(addresses) as client:
        names = [each.service for each in (await released(client)).services]
        assert names[:2] == ["gateway", "gateway.1"]
        killed = pid_of(cluster, "gateway")
        os.kill(killed, signal.SIGKILL)
        for _ in range(4):
            assert (await client.complete("x", max_tokens=1)).choices
        await back(cluster, "gateway", killed)
