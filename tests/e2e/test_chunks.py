"""Prompts in chunks on real processes: answers stay as they were, whatever moves or is lost."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from sps2.common.client import AsyncClient

from .conftest import Launch, Running
from .test_cluster import (
    answered_alike_alone_and_together,
    answered_as_transformers,
    prompt_of,
    released,
)
from .test_prefix_cache import running_pid

CHUNK = 64
SCHEDULER = {"prefill_span_tokens": 16, "decode_span_tokens": 64, "chunk_tokens": CHUNK}
SHAPES = {
    "apart": {"prefill": 2, "decode": 2},
    "mixed": {"mixed": 2},
    "sarathi": {"mixed": 2, "scheduler": {**SCHEDULER, "policy": "sarathi"}},
    "loongserve": {"mixed": 3, "scheduler": {**SCHEDULER, "policy": "loongserve"}},
}


@pytest.fixture(scope="module", params=SHAPES)
def cluster(request: pytest.FixtureRequest, launch: Launch) -> Iterator[Running]:
    """Pages of four tokens, so that chunks end within spans of KV."""
    settings = {"scheduler": SCHEDULER, **SHAPES[request.param]}
    with launch("smollm2", "tcp", kv={"page_tokens": 4}, **settings) as running:
        yield running


@pytest.mark.parametrize("length", [1, 40, 131, 300])
def test_greedy_tokens_equal_transformers(cluster: Running, length: int) -> None:
    usage = answered_as_transformers(cluster, length, 24, cache_salt=f"{length}")
    assert usage.chunks >= -(-length // (CHUNK * usage.sp_degree))
    assert usage.exchange_bytes == usage.predicted_exchange_bytes
    again = answered_as_transformers(cluster, length, 24, cache_salt=f"{length}")
    assert again.cached_tokens == (length - 1) // 4 * 4


@pytest.mark.parametrize(
    ("cluster", "requests"), [("apart", 32), ("sarathi", 12)], indirect=["cluster"]
)
async def test_requests_prefill_and_decode_side_by_side(cluster: Running, requests: int) -> None:
    """Of `sarathi` fewer: what decode steps leave of its small chunks makes for many of them."""
    await answered_alike_alone_and_together(cluster, requests)


@pytest.mark.parametrize("pause_s", [0.0, 0.02, 0.04, 0.08])
async def test_a_cancel_at_any_moment_frees_every_page(cluster: Running, pause_s: float) -> None:
    async with AsyncClient(cluster.bus) as client:
        asking = [
            asyncio.create_task(
                client.complete(
                    prompt_of(400 - each), max_tokens=100, ignore_eos=True, cache_salt=f"{pause_s}"
                )
            )
            for each in range(3)
        ]
        await asyncio.sleep(pause_s)
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        assert (await released(client)).leaked_pages == 0


@pytest.fixture(scope="module")
def doomed(launch: Launch) -> Iterator[Running]:
    """A cluster that loses shards."""
    with launch("long", "tcp", scheduler=SCHEDULER) as running:
        yield running


async def test_a_prefill_that_lost_a_shard_goes_on_behind_its_last_chunk(doomed: Running) -> None:
    """The chunks that were computed are cached, and are not computed again."""
    async with AsyncClient(doomed.bus) as client:
        pid = await running_pid(client, "prefill-1")
        stream = client.complete_stream(
            prompt_of(4000),
            max_tokens=8,
            temperature=0,
            ignore_eos=True,
            sps2={"progress": True},
        )
        killed, text, used = False, "", None
        async for item in stream:
            if item.sps2 and item.sps2.progress.processed > 1000 and not killed:
                os.kill(pid, signal.SIGKILL)
                killed = True
            text += "".join(choice.text for choice in item.choices)
            used = item.usage.sps2 if item.usage else used
        assert killed
        assert used is not None
        assert used.epoch >= 1
        assert used.cached_tokens >= 900
        again = await client.complete(
            prompt_of(4000), max_tokens=8, temperature=0, ignore_eos=True, cache_salt="anew"
        )
    assert text == again.choices[0].text
