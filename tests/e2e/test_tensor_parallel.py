"""Shards of several processes: real ones, their loss included."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest

from sps2.cli import ports
from sps2.cli.local import running_cluster
from sps2.cli.runs import RunFolder
from sps2.common import config
from sps2.common.client import AsyncClient
from sps2.common.errors import Invalid
from sps2.common.keys.keyring import Keyring
from sps2.common.text.tokens import Tokenizer

from .conftest import Running
from .test_cluster import expected, prompt_of, released, said

Launch = Callable[..., AbstractContextManager[Running]]
NAME = "tensor-parallel"


@pytest.fixture
def launch(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Launch:
    """Brings up a cluster with so many prefill and decode shards of so many processes."""
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    folder = checkpoint("llama3")

    @contextmanager
    def running(
        prefill: tuple[int, int], decode: tuple[int, int], **more: object
    ) -> Iterator[Running]:
        flags = {
            "scheduler": {
                "prefill_span_tokens": 16,
                "decode_span_tokens": 64,
                "chunk_tokens": 64,
            },
            "dtype": "float32",
            "threads": 1,
            "prefill": prefill[0],
            "tp": prefill[1],
            "decode": decode[0],
            "decode_tp": decode[1],
            "kv": {"growth_tokens": 16},
            **more,
        }
        port = ports.free_base()
        with running_cluster(name=NAME, port=port, model=str(folder), **flags):
            cluster = config.load(port=port)
            yield Running(folder, cluster.gateway_address, cluster.http_url)

    return running


async def greedy(client: AsyncClient, length: int, tokens: int = 64) -> list[str]:
    answer = await client.complete(
        prompt_of(length), max_tokens=tokens, temperature=0, ignore_eos=True, logprobs=0
    )
    return said(answer)


def texts(folder: Path, length: int, tokens: int = 64) -> list[str]:
    tokenizer = Tokenizer(folder)
    wanted = expected(folder, prompt_of(length), tokens)
    return [tokenizer.token_text(token) for token in wanted]


def test_answers_departures_and_killed_followers(launch: Launch) -> None:
    """Greedy tokens equal transformers', before and after clients left and shards were lost.

    Prompts of more than 128 tokens are computed in chunks.
    """

    async def ask(cluster: Running) -> None:
        async with AsyncClient(cluster.bus) as client:
            for length in (1, 17, 200):
                assert await greedy(client, length) == texts(cluster.folder, length)
            sizes = [(30 + 70 * index, 20) for index in range(5)]
            alone = [await greedy(client, *size) for size in sizes]
            assert await asyncio.gather(*(greedy(client, *size) for size in sizes)) == alone

            for pause_s in (0.0, 0.01, 0.03, 0.1):
                leaving = asyncio.create_task(greedy(client, 400))
                await asyncio.sleep(pause_s)
                leaving.cancel()
                await asyncio.wait({leaving})
            assert await greedy(client, 30, 20) == alone[0]
            assert (await released(client)).leaked_pages == 0

            for follower in ("prefill-1.1", "decode-1.1"):
                running = [asyncio.create_task(greedy(client, 300, 200)) for _ in range(2)]
                await asyncio.sleep(0.2)
                before = pids(follower, follower.partition(".")[0])
                os.kill(before[0], signal.SIGKILL)
                for answer in await asyncio.gather(*running):
                    assert answer == texts(cluster.folder, 300, 200)
                async with asyncio.timeout(120):
                    while any(map(psutil.pid_exists, before)):
                        await asyncio.sleep(0.1)
                    while (status := await client.status()).missing or not status.ready:
                        await asyncio.sleep(0.1)
                assert await greedy(client, 30, 20) == alone[0]
                assert (await released(client)).leaked_pages == 0

    with launch((2, 2), (2, 2)) as cluster:
        asyncio.run(ask(cluster))


def pids(*services: str) -> list[int]:
    state = RunFolder(NAME).state()
    assert state is not None
    return [state.services[name].pid for name in services]


def test_links_may_be_encrypted(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    with launch((2, 2), (2, 2), encryption="on", keys=str(ring.folder)) as cluster:
        asyncio.run(ask(cluster))


def test_a_model_that_cannot_be_split_so_is_refused(launch: Launch) -> None:
    refused = pytest.raises(Invalid, match=r"tp 3 cannot split 4 heads.*possible are 1, 2")
    with refused, launch((1, 3), (1, 1)):
        pass
