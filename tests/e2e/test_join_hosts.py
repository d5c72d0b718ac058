"""Machines join over a network: four hosts, one code, no list (Linux, root).

The code of the last one has an address at which nobody is: it finds the cluster by mDNS.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from links_network import Network, Unavailable, inside, network

from sps2.common.client import AsyncClient
from sps2.common.config import Bus

from .joining import JOINED, Process, code_in, outdated, released, states
from .test_cluster import prompt_of, said
from .test_join import CONFIG, on

HOSTS = ("alpha", "beta", "gamma", "delta")
GATEWAY = "tcp://10.77.0.1:8001"


class Village:
    """Four hosts, of which the first has the cluster and the model."""

    def __init__(self, net: Network, folder: Path, stack: ExitStack) -> None:
        self.net = net
        self.folder = folder
        self._stack = stack

    def start(self, host: str, *arguments: object) -> Process:
        """Run `spsctl` on a host, until the end of the test."""
        with inside(self.net.hosts[host]):
            process = Process(self.folder / host, *arguments)
        self._stack.callback(lambda: process.is_up and process.interrupt())
        return process


@pytest.fixture
def village(tmp_path: Path) -> Iterator[Village]:
    with ExitStack() as stack:
        try:
            net = stack.enter_context(network(HOSTS))
        except Unavailable as error:
            pytest.skip(f"hosts need network namespaces, which need root and iproute2: {error}")
        stack.enter_context(inside(net.hosts["alpha"]))
        yield Village(net, tmp_path, stack)


async def test_hosts_come_with_a_code_and_one_is_unplugged(
    village: Village, checkpoint: Callable[[str], Path]
) -> None:
    (village.folder / "alpha" / "models").mkdir(parents=True)
    (village.folder / "alpha" / "models" / "tiny").symlink_to(checkpoint("smollm2"))
    config = village.folder / "cluster.toml"
    config.write_text(CONFIG)
    up = village.start("alpha", "up", "--invite", "--config", config)
    code = code_in(up.until("spsctl join"))
    others = [village.start(host, "join", code, "--threads", 1) for host in ("beta", "gamma")]
    for other in others:
        other.until(JOINED)

    async with AsyncClient(GATEWAY, Bus(keys=str(village.folder / "alpha" / "keys"))) as client:
        status = await client.status()
        at = {shard.address.split(":")[1] for shard in status.shards}
        assert at == {f"//10.77.0.{number}" for number in (1, 2, 3)}
        whole = said(await client.complete(prompt_of(300), **on(3)))

        stream = client.complete_stream(prompt_of(300), cache_salt="unplugged", **on(3))
        tokens = said(await anext(stream))
        village.net.cut("beta")
        async for chunk in stream:
            tokens += said(chunk) if chunk.choices else []
        assert tokens == whole
        while [*states(await client.status()).values()].count("lost") != 1:
            await asyncio.sleep(0.1)

        delta = village.start("delta", "join", outdated(code), "--threads", 1)
        assert "found the cluster at 10.77.0.1:8013, by mDNS" in delta.until(JOINED)
        again = await client.complete(prompt_of(300), cache_salt="delta", **on(3))
        assert said(again) == whole, "delta takes the place of beta"

        village.net.restore("beta")
        while {*states(await client.status()).values()} != {"ready"}:
            await asyncio.sleep(0.1)
        assert len(states(await released(client))) == 4
