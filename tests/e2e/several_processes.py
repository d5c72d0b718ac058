"""Clusters whose shards are several processes each, and what tests do with them."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil

from sps2.cli.runs import RunFolder
from sps2.common.client import AsyncClient
from sps2.common.text.tokens import Tokenizer

from .conftest import PROCESSES, Running
from .test_cluster import expected, prompt_of, released, said


async def greedy(client: AsyncClient, length: int, tokens: int = 64) -> list[str]:
    answer = await client.complete(
        prompt_of(length), max_tokens=tokens, temperature=0, ignore_eos=True, logprobs=0
    )
    return said(answer)


def texts(folder: Path, length: int, tokens: int = 64) -> list[str]:
    tokenizer = Tokenizer(folder)
    return [tokenizer.token_text(token) for token in expected(folder, prompt_of(length), tokens)]


async def pids(*services: str) -> list[int]:
    """Of services of `launch_processes`; a service that is about to start has 0 until then."""
    while True:
        state = RunFolder(PROCESSES).state()
        assert state is not None
        if all(found := [state.services[name].pid for name in services]):
            return found
        await asyncio.sleep(0.1)


async def answers_departures_and_losses(cluster: Running, killed: Sequence[str]) -> None:
    """Greedy tokens equal transformers', before and after clients left and losses of processes."""
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

        for process in killed:
            running = [asyncio.create_task(greedy(client, 300, 200)) for _ in range(2)]
            await asyncio.sleep(0.2)
            shard = await pids(process, process.partition(".")[0])
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
