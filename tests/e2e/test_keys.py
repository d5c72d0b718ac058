"""A real cluster with keys: it answers as any other, and strangers get nothing."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
import psutil
import pytest

from sps2.common.bus.peer import Peer as BusPeer
from sps2.common.client import Client
from sps2.common.config import Bus
from sps2.common.errors import Invalid, PeerLost
from sps2.common.keys.keyring import Keyring
from sps2.common.messages import ClusterStatus, Peer, Register, Shard, ShowCluster, ShowFleet
from sps2.common.transport import hello
from sps2.common.transport.identity import Identity

from .conftest import Launch, Running
from .test_cluster import answered_as_transformers


class Keyed(NamedTuple):
    cluster: Running
    ring: Keyring
    alice: Path
    api_key: str


@pytest.fixture(scope="module", params=["tcp", "tcp+tls", "ucx"])
def keyed(
    request: pytest.FixtureRequest, launch: Launch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("keys")
    ring = Keyring(folder / "keys")
    ring.make("test")
    ring.add_client("alice", folder / "alice.key")
    api_key = ring.add_api_key("bob")
    transport, _, tls = request.param.partition("+")
    more = {"mixed": 2, "keys": str(ring.folder), "encryption": "on" if tls else "auto"}
    with (
        launch("smollm2", transport, **more) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("SPS2_KEYS", str(folder / "alice.key"))
        yield Keyed(cluster, ring, folder / "alice.key", api_key)


def asked_over_http(keyed: Keyed, key: str) -> int:
    body = {"prompt": "x", "max_tokens": 2}
    headers = {"authorization": f"Bearer {key}"}
    url = f"{keyed.cluster.url}/v1/completions"
    return httpx.post(url, json=body, headers=headers, timeout=60).status_code


def test_it_answers_as_any_other(keyed: Keyed) -> None:
    took = answered_as_transformers(keyed.cluster, 150, 12)
    assert took.sp_degree == 2
    assert asked_over_http(keyed, keyed.api_key) == 200
    assert asked_over_http(keyed, "wrong") == 401


async def test_strangers_get_nothing_of_the_bus(keyed: Keyed, tmp_path: Path) -> None:
    other = Keyring(tmp_path / "other")
    other.make("other")
    keyed.ring.add_client("mallory", tmp_path / "mallory.key")
    keyed.ring.revoke_client("mallory")
    host, port = keyed.cluster.bus.rsplit(":", 1)
    scheduler = f"{host}:{int(port) + 1}"
    with Client(keyed.cluster.bus) as client:
        shards = client.status().shards
    forged = Shard(
        "decode-0", "decode", os.getpid(), scheduler, Peer("decode-0/evil", "tcp://x:1", bytes(16))
    )
    for bus in (
        Bus(),
        Bus(keys=str(other.folder)),
        Bus(keys=str(tmp_path / "mallory.key")),
        Bus(keys=str(keyed.alice)),  # a client, who may ask the gateway and nobody else
    ):
        inside = [scheduler, *(shard.address for shard in shards)]
        if bus.keys != str(keyed.alice):
            inside.append(keyed.cluster.bus)
        for address in inside:
            peer = BusPeer(address, bus)
            async with asyncio.timeout(60):
                with pytest.raises(Invalid, match="key"):
                    await peer.call(ShowCluster() if address == keyed.cluster.bus else ShowFleet())
                with pytest.raises(Invalid, match="key"):
                    async with peer.stream(Register(forged)) as accepted:
                        await anext(accepted)
            await peer.close()
    _still_well(keyed)


async def _planes(status: ClusterStatus) -> list[Peer]:
    """The data planes: of all ports that shards listen at, those that speak as one does."""

    async def plane(name: str, port: int) -> Peer:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            if await reader.readexactly(4) == hello.MAGIC:
                return Peer(name, f"tcp://127.0.0.1:{port}", bytes(16))
            return await asyncio.Event().wait()  # type: ignore[return-value]
        finally:
            writer.close()

    ports = [
        (shard.peer, each.laddr.port)
        for shard in status.shards
        for each in psutil.Process(shard.pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    ]
    found: list[Peer] = []
    tasks = [asyncio.create_task(plane(*each)) for each in ports]
    async with asyncio.timeout(60):
        for task in asyncio.as_completed(tasks):
            found.append(await task)
            if len(found) == len(status.shards):
                break
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found


async def test_strangers_get_nothing_of_the_data_plane(keyed: Keyed, tmp_path: Path) -> None:
    with Client(keyed.cluster.bus) as client:
        status = client.status()
    (transport,) = {shard.transport for shard in status.shards}
    backend, _, tls = transport.partition("+")
    greeting = hello.Hello("decode-1/1", "tcp://127.0.0.1:1", backend, bytes(16), b"x")  # type: ignore[arg-type]
    other = Keyring(tmp_path / "other").make("other")
    attempts = [
        (None, "links to it are encrypted" if tls else "not introduced by the control plane"),
        (Identity("decode-1/1", other), "certificate" if tls else "those to the other are not"),
    ]
    for plane in await _planes(status):
        for token in (bytes(16), b"", os.urandom(16)):
            for identity, why in attempts:
                with pytest.raises(PeerLost, match=why):
                    await hello.dial(
                        msgspec.structs.replace(plane, token=token), greeting, identity
                    )
    _still_well(keyed)


def _still_well(keyed: Keyed) -> None:
    with Client(keyed.cluster.bus) as client:
        assert client.status().ready
        assert client.complete("x", max_tokens=2).usage.completion_tokens > 0
