"""Shards that are pipelines of processes: real ones, the loss of a stage included."""

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
from sps2.common.text.tokens import Tokenizer

from .conftest import Running
from .test_cluster import expected, prompt_of, released, said

Launch = Callable[..., AbstractContextManager[Running]]
NAME = "pipeline-parallel"


@pytest.fixture
def launch(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Launch:
    """Brings up a cluster whose shards have so many stages."""
    monkeypatch.setenv("SPS2_HOME", str(tmp_path))
    folder = checkpoint("llama3")

    @contextmanager
    def running(pp: int, **shards: int) -> Iterator[Running]:
        flags = {
            "scheduler": {"prefill_span_tokens": 16, "decode_span_tokens": 64, "chunk_tokens": 64},
            "dtype": "float32",
            "threads": 1,
            "pp": pp,
            "kv": {"growth_tokens": 16},
            **shards,
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
    return [tokenizer.token_text(token) for token in expected(folder, prompt_of(length), tokens)]


def pids(*services: str) -> list[int]:
    state = RunFolder(NAME).state()
    assert state is not None
    return [state.services[name].pid for name in services]


async def answers_departures_and_losses(cluster: Running, stages: list[str]) -> None:
    """Greedy tokens equal transformers', before and after clients left and stages were lost."""
    async with AsyncClient(cluster.bus) as client:
        for length in (1, 17, 200):
            assert await greedy(client, length) == texts(cluster.folder, length)
        sizes = [(30 + 70 * index, 20) for index in range(5)]
        several = await asyncio.gather(*(greedy(client, *size) for size in sizes))
        assert several == [texts(cluster.folder, *size) for size in sizes]

        for pause_s in (0.0, 0.01, 0.03, 0.1):
            leaving = asyncio.create_task(greedy(client, 400))
            await asyncio.sleep(pause_s)
            leaving.cancel()
            await asyncio.wait({leaving})
        assert await greedy(client, 30, 20) == texts(cluster.folder, 30, 20)
        assert (await released(client)).leaked_pages == 0

        for stage in stages:
            running = [asyncio.create_task(greedy(client, 300, 200)) for _ in range(2)]
            await asyncio.sleep(0.2)
            shard = pids(stage, stage.partition(".")[0])
            os.kill(shard[0], signal.SIGKILL)
            for answer in await asyncio.gather(*running):
                assert answer == texts(cluster.folder, 300, 200)
            async with asyncio.timeout(120):
                while any(map(psutil.pid_exists, shard)):
                    await asyncio.sleep(0.1)
                while (status := await client.status()).missing or not status.ready:
                    await asyncio.sleep(0.1)
            assert await greedy(client, 30, 20) == texts(cluster.folder, 30, 20)
            assert (await released(client)).leaked_pages == 0


def test_one_prefill_and_one_decode_shard(launch: Launch) -> None:
    with launch(2, prefill=1, decode=1) as cluster:
        asyncio.run(answers_departures_and_losses(cluster, ["prefill-0.1", "decode-0.1"]))


def test_two_prefill_and_two_decode_shards(launch: Launch) -> None:
    with launch(3, prefill=2, decode=2) as cluster:
        asyncio.run(answers_departures_and_losses(cluster, ["decode-1.2"]))


def test_two_mixed_shards(launch: Launch) -> None:
    with launch(2, mixed=2) as cluster:
        asyncio.run(answers_departures_and_losses(cluster, ["mixed-1.1", "mixed-0"]))


def test_more_stages_than_layers_are_refused(launch: Launch) -> None:
    refused = pytest.raises(Invalid, match=r"pp 4 cannot split 3 layers.*possible are 1 to 3")
    with refused, launch(4, prefill=1, decode=1):
        pass
