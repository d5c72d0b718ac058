"""Shards of several processes: real ones, their loss included."""

import asyncio
from pathlib import Path

import pytest

from sps2.common.client import AsyncClient
from sps2.common.errors import Invalid
from sps2.common.keys.keyring import Keyring

from .conftest import Launch, Running
from .several_processes import answers_departures_and_losses, greedy, texts


def test_answers_departures_and_killed_followers(launch_processes: Launch) -> None:
    with launch_processes(prefill=2, tp=2, decode=2, decode_tp=2) as cluster:
        asyncio.run(answers_departures_and_losses(cluster, ["prefill-1.1", "decode-1.1"]))


def test_links_may_be_encrypted(
    launch_processes: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for any shards; the processes of one meet on loopback."""
    ring = Keyring(tmp_path / "keys")
    ring.make("here")
    monkeypatch.setenv("SPS2_KEYS", str(ring.folder))

    async def ask(cluster: Running) -> None:
        async with AsyncClient(cluster.bus) as client:
            shards = (await client.status()).shards
            assert {shard.transport for shard in shards} == {"tcp+tls"}
            for length in (17, 200):
                assert await greedy(client, length) == texts(cluster.folder, length)

    shape = {"prefill": 2, "tp": 2, "decode": 2, "decode_tp": 2}
    with launch_processes(**shape, encryption="on", keys=str(ring.folder)) as cluster:
        asyncio.run(ask(cluster))


def test_a_model_that_cannot_be_split_so_is_refused(launch_processes: Launch) -> None:
    refused = pytest.raises(Invalid, match=r"tp 3 cannot split 4 heads.*possible are 1, 2")
    with refused, launch_processes(prefill=1, tp=3, decode=1, decode_tp=1):
        pass
